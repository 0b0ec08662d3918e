"""The cluster as `cluster.placement` wants to know it, asked of Ray; and the patience of a run without a place."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from cluster.placement import Node, described, engine_resources, listed, place
from pipeline.config import RunConfig
from pipeline.errors import EngineStartError
from pipeline.placement import Placement
from pipeline.progress import Progress

LOOK_S = 5.0
"""Seconds between two looks at the cluster's nodes."""


def place_on_cluster(config: RunConfig) -> Placement:
    """The placement of a run's engines on the cluster that is connected. Raises as `cluster.placement.place`."""
    return place(config, live_nodes(), addable_nodes())


def live_nodes() -> list[Node]:
    """The nodes that are up, with all they have."""
    return [_node(node["Resources"], node["Labels"], node["NodeID"]) for node in ray.nodes() if node["Alive"]]


def free_nodes() -> list[Node]:
    """The nodes that are up, with what is free of them now."""
    free = ray._private.state.available_resources_per_node()
    kinds = {node.id: node for node in live_nodes()}
    return [
        Node(left.get("CPU", 0.0), left.get("GPU", 0.0), kinds[id].accelerators, kinds[id].labels, id)
        for id, left in free.items()
        if id in kinds
    ]


def addable_nodes() -> list[Node]:
    """By type the nodes that an autoscaler may add to those that are up; none on a cluster that stays as it is. A type's
    running nodes are not told apart, so that this is at most what can come."""
    config = ray._private.state.state.get_cluster_config()
    kinds = config.node_group_configs if config else ()
    return [
        _node(dict(kind.resources), {}, "", 2**31 if kind.max_count < 0 else kind.max_count)
        for kind in kinds
        if kind.max_count < 0 or kind.max_count > kind.min_count
    ]


def _node(resources: Mapping[str, float], labels: Mapping[str, str], id: str, count: int = 1) -> Node:
    accelerators = frozenset(name.split(":", 1)[1] for name in resources if name.startswith("accelerator_type:"))
    return Node(
        resources.get("CPU", 0.0), resources.get("GPU", 0.0), accelerators, frozenset(labels.items()), id, count
    )


class Patience:
    """Ends a run that has had no engine in its place for `pool.wait_s`: its nodes are taken by others, are gone, or never
    came. Engines that are loading or waiting beside one that has its place are left to."""

    def __init__(self, config: RunConfig, placement: Placement, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._placement, self._clock = config, placement, clock
        self._since = self._looked = clock()

    def check(self, figures: Progress) -> None:
        """Called every now and then.

        Raises:
            EngineStartError: patience is at its end; with what is free.
        """
        now = self._clock()
        if now - self._looked < min(LOOK_S, self._config.pool.wait_s):
            return
        self._looked = now
        if not figures.wants_engines:
            self._since = now
            return
        alive = {node.id for node in live_nodes()}
        if any(alive.issuperset(nodes) for nodes in figures.places.values()):
            self._since = now
        elif now - self._since >= self._config.pool.wait_s:
            raise EngineStartError(
                f"No engine found a place in {self._config.pool.wait_s:g} s. One takes {self._needs()}. "
                f"Free now: {listed(free_nodes())}",
                where="pool",
                todo="Add nodes, lower the parallel sizes, or set pool.wait_s to wait for longer.",
            )

    def _needs(self) -> Any:
        return described(engine_resources(self._config), self._placement.gang)
