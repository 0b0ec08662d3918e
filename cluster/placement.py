"""What one engine takes from the cluster, and whether the cluster has it. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError

CPU_ENGINE_CPUS = 1.0
ECHO_ENGINE_CPUS = 0.01
IO_CPUS = 0.25  # one read or write task must fit beside the engines


def engine_resources(config: RunConfig) -> dict[str, Any]:
    """What Ray must give one engine, as arguments of `map_batches`: `num_cpus`, and on an accelerator `num_gpus` (tensor
    times pipeline parallel size) and `accelerator_type`."""
    cpus = ECHO_ENGINE_CPUS if config.engine.kind == "echo" else CPU_ENGINE_CPUS
    if config.pool.accelerator is None:
        return {"num_cpus": cpus}
    return {"num_cpus": cpus, "num_gpus": config.engine.num_gpus, "accelerator_type": config.pool.accelerator}


def check_room(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises `ConfigError` if the cluster cannot hold `pool.min` engines and a task beside them, each engine on one node.

    `nodes` holds the total resources of each live node, as `ray.nodes()` tells. Without this check Ray would wait for
    ever.
    """
    need, engines, room = engine_resources(config), config.pool.min, num_engines(config, nodes)
    accelerator, gpus = need.get("accelerator_type"), need.get("num_gpus", 0)
    spare = sum(n.get("CPU", 0.0) for n in nodes) - engines * need["num_cpus"]
    if room >= engines and spare >= IO_CPUS:
        return
    has = "; ".join(sorted(_shown(n) for n in nodes))
    wants = f"{need['num_cpus']:g} CPU" + (f" and {gpus} {accelerator} on one node" if gpus else "")
    raise ConfigError(
        f"{engines} engine{'s' if engines > 1 else ''} of {wants} do not fit: there is room for {min(room, engines)}, "
        f"with {IO_CPUS:g} CPU kept for reading and writing. The cluster's nodes: {has}",
        where="pool",
        todo="Lower pool.min or the parallel sizes, or add nodes.",
    )


def num_engines(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> int:
    """Engines that such nodes have room for, each on one node, whatever the pool's size."""
    need = engine_resources(config)
    accelerator, gpus = need.get("accelerator_type"), need.get("num_gpus", 0)
    fitting = [n for n in nodes if accelerator is None or f"accelerator_type:{accelerator}" in n]
    return sum(int(min(_times(n, "CPU", need["num_cpus"]), _times(n, "GPU", gpus))) for n in fitting)


def _times(node: Mapping[str, float], resource: str, need: float) -> float:
    return node.get(resource, 0.0) // need if need else float("inf")


def _shown(node: Mapping[str, float]) -> str:
    kinds = [k.split(":", 1)[1] for k in node if k.startswith("accelerator_type:")]
    return f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" + (f" ({', '.join(kinds)})" if kinds else "")
