"""What the engines of a run take from a cluster, how they are laid out over its nodes, and whether they fit. Pure.

The rules, with their reasons, are in docs/placement.md.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.placement import ACCELERATOR_LABEL, Gang, Placement

CPU_ENGINE_CPUS = 1.0
ECHO_ENGINE_CPUS = 0.01
IO_CPUS = 0.25  # one read or write task must fit beside the engines
USUAL_GPUS = 8
"""GPUs of an H100 host, for clusters that have none up yet and do not say what they can add."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster, or one of a type that its autoscaler may add `count` times, of which nothing but the resources
    is known for certain."""

    cpus: float
    gpus: float
    accelerators: frozenset[str] = frozenset()
    labels: frozenset[tuple[str, str]] = frozenset()
    id: str = ""
    count: int = 1

    def has(self, accelerator: str | None) -> bool:
        if accelerator is None or accelerator in self.accelerators or (ACCELERATOR_LABEL, accelerator) in self.labels:
            return True
        return not self.id and not self.accelerators and self.gpus > 0  # a type that does not name its GPUs

    @property
    def kinds(self) -> frozenset[str]:
        """What its accelerators are called, by resource or by label."""
        return self.accelerators | {value for key, value in self.labels if key == ACCELERATOR_LABEL}

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU, {self.gpus:g} GPU" + (f" ({', '.join(sorted(self.kinds))})" if self.kinds else "")


def engine_resources(config: RunConfig) -> dict[str, Any]:
    """What one engine takes in all: `num_cpus`, and on an accelerator `num_gpus` (tensor times pipeline parallel size) and
    `accelerator_type`."""
    cpus = ECHO_ENGINE_CPUS if config.engine.kind == "echo" else CPU_ENGINE_CPUS
    if config.pool.accelerator is None:
        return {"num_cpus": cpus}
    return {"num_cpus": cpus, "num_gpus": config.engine.num_gpus, "accelerator_type": config.pool.accelerator}


def place(config: RunConfig, nodes: Sequence[Node], addable: Sequence[Node] = ()) -> Placement:
    """How engines are laid out on a cluster with these nodes, and these that an autoscaler may add.

    Raises:
        ConfigError: the cluster can never hold `pool.min` engines and a task beside them; with what is missing and what
            the cluster has. Whether nodes are free now is not looked at.
    """
    accelerator, need = config.pool.accelerator, engine_resources(config)
    fitting = [node for node in nodes if node.has(accelerator)]
    can_come = [node for node in addable if node.has(accelerator)]
    by_label = accelerator is not None and (
        all((ACCELERATOR_LABEL, accelerator) in node.labels for node in fitting)
        and not any(accelerator in kind.accelerators for kind in can_come)
    )
    gang = _gang(config, [*fitting, *can_come], by_label)
    _check(config, need, gang, list(nodes), list(addable))
    hosts = max(1, len(fitting))
    if accelerator is None:
        return Placement(need, hosts=hosts)
    pin = {"label_selector": {ACCELERATOR_LABEL: accelerator}} if by_label else {"accelerator_type": accelerator}
    actor = {"num_cpus": need["num_cpus"], **pin}
    if gang is None:
        actor["num_gpus"] = need["num_gpus"]
        largest = max((node.gpus for node in fitting), default=USUAL_GPUS)
        per_host = max(1, int(largest // need["num_gpus"]))
    else:
        per_host = None
    return Placement(actor, _off(accelerator, fitting, nodes, by_label), gang, hosts, per_host)


def _gang(config: RunConfig, hosts: Sequence[Node], by_label: bool) -> Gang | None:
    """The gang of an engine that no node can hold whole, or that is to use vLLM's Ray executor by the job's own word."""
    args = config.engine.vllm_args
    asked = args.get("distributed_executor_backend")
    largest = max((node.gpus for node in hosts), default=USUAL_GPUS)
    stages = int(args.get("pipeline_parallel_size", 1))
    fits = config.engine.num_gpus <= largest or stages == 1
    if asked != "ray" and (config.pool.accelerator is None or fits or asked is not None):
        return None
    if config.pool.accelerator is None:
        raise ConfigError(
            "vLLM's Ray executor needs GPUs: it does not run on the CPU",
            where="engine.distributed_executor_backend",
            todo="Set pool.accelerator, or leave it out.",
        )
    return Gang(stages, config.engine.num_gpus // stages, config.pool.accelerator, by_label)


def _off(accelerator: str, fitting: Sequence[Node], nodes: Sequence[Node], by_label: bool) -> dict[str, Any]:
    """Options that keep read tasks off the engines' nodes, whose CPUs the engines need, while other nodes have room."""
    if len(fitting) == len(nodes) or not fitting:
        return {}
    if by_label:
        elsewhere = {ACCELERATOR_LABEL: f"!in({accelerator})"}
    else:
        elsewhere = {"ray.io/node-id": f"!in({','.join(node.id for node in fitting)})"}
    return {"label_selector": elsewhere, "fallback_strategy": [{"label_selector": {}}]}


def _check(
    config: RunConfig, need: dict[str, Any], gang: Gang | None, nodes: list[Node], addable: Sequence[Node]
) -> None:
    engines, accelerator, cpus = config.pool.min, config.pool.accelerator, need["num_cpus"]
    groups, size = _parts(need, gang)
    # of a type that may be added without bound, as many as could be wanted
    room = [*nodes, *(node for node in addable for _ in range(min(node.count, engines * groups + 1)))]
    hosts = [node for node in room if node.has(accelerator)]
    seats = sum(int(node.gpus // size) if size else engines for node in hosts)
    held = _held(need, gang, hosts)
    spare = sum(node.cpus for node in room) - engines * cpus
    if held >= engines and spare >= IO_CPUS:
        return
    lacks = []
    if (short := engines * groups - seats) > 0:
        lacks.append(f"{short} x {size} {accelerator} on one node")
    if not lacks or spare < IO_CPUS:
        lacks.append(
            f"CPU: {cpus:g} for each engine{' on its own node' if accelerator else ''}, {IO_CPUS:g} for reading"
        )
    said = f"; it can add: {listed(addable)}" if addable else ""
    raise ConfigError(
        f"{engines} engine{'s' if engines > 1 else ''} of {described(need, gang)} do not fit: there is room for "
        f"{min(held, engines)}. Missing: {'; '.join(lacks)}. The cluster's nodes: {listed(nodes)}{said}",
        where="pool",
        todo="Lower pool.min or the parallel sizes, or add nodes.",
    )


def num_engines(config: RunConfig, nodes: Sequence[Node]) -> int:
    """Engines that these nodes have room for, whatever the pool's size."""
    hosts = [node for node in nodes if node.has(config.pool.accelerator)]
    return _held(engine_resources(config), _gang(config, hosts, False), hosts)


def _parts(need: dict[str, Any], gang: Gang | None) -> tuple[int, int]:
    """Into how many parts, each on one node, an engine may fall, and the GPUs of each."""
    return (gang.groups, gang.size) if gang else (1, need.get("num_gpus", 0))


def _held(need: dict[str, Any], gang: Gang | None, hosts: Sequence[Node]) -> int:
    """Engines that these nodes hold."""
    groups, size = _parts(need, gang)
    actors = [int(node.cpus // need["num_cpus"]) for node in hosts]
    if not size:
        return sum(actors)
    seats = [int(node.gpus // size) for node in hosts]
    return min(sum(seats) // groups, sum(actors)) if gang else sum(map(min, seats, actors))


def described(need: dict[str, Any], gang: Gang | None) -> str:
    """What one engine takes, as people say it."""
    if "num_gpus" not in need:
        return f"{need['num_cpus']:g} CPU"
    layout = f"in {gang.groups} groups of {gang.size}, each on one node" if gang else "on one node"
    return f"{need['num_cpus']:g} CPU and {need['num_gpus']} {need['accelerator_type']} {layout}"


def listed(nodes: Sequence[Node]) -> str:
    """Nodes, those that are alike as one."""
    alike = Counter(str(node) for node in nodes)
    return "; ".join(f"{count} x ({text})" if count > 1 else text for text, count in sorted(alike.items())) or "none"
