"""How many nodes a job's pool takes. Pure."""

from dataclasses import dataclass

from pipeline.config import RunConfig
from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class NodeCount:
    """Worker nodes to start with, and to grow to."""

    min: int
    max: int


def count_nodes(config: RunConfig, gpus_per_node: int, nodes: int | None = None) -> NodeCount:
    """The worker nodes for `pool.min` to `pool.max` engines, or `nodes` of them.

    Engines on the CPU get a node each. An engine that does not fit one node takes whole nodes of its own, with each tensor
    parallel group on a single node.

    Raises:
        ConfigError: a tensor parallel group exceeds a node, or `nodes` do not hold `pool.min` engines.
    """
    least = _nodes_of(config, gpus_per_node, config.pool.min)
    if nodes is None:
        return NodeCount(least, _nodes_of(config, gpus_per_node, config.pool.ceiling))
    if nodes < least:
        raise ConfigError(
            f"{config.pool.min} engine(s) of {config.engine.num_gpus} GPU(s) take {least} node(s), and there are {nodes}",
            where="--nodes",
            todo="Lower pool.min or the parallel sizes, or give more nodes.",
        )
    return NodeCount(nodes, nodes)


def _nodes_of(config: RunConfig, gpus_per_node: int, engines: int) -> int:
    if config.pool.accelerator is None:
        return engines
    gpus = config.engine.num_gpus
    if gpus <= gpus_per_node:
        return -(-engines // (gpus_per_node // gpus))
    group = int(config.engine.vllm_args.get("tensor_parallel_size", 1))
    if group > gpus_per_node:
        raise ConfigError(
            f"tensor_parallel_size {group} exceeds the {gpus_per_node} GPUs of a node",
            where="engine",
            todo="Lower it and raise pipeline_parallel_size instead.",
        )
    return engines * -(-(gpus // group) // (gpus_per_node // group))
