"""GPUs on several nodes for one engine, taken by the engine's own process.

vLLM's Ray executor wants one placement group with a bundle for each GPU, and Ray has no strategy by which bundles 0 to 7
come to lie on one node and 8 to 15 on another. So it is done in two steps. First whole groups are reserved, a bundle of
`size` GPUs each: a bundle never spans nodes, Ray gives all of them or none, picks the nodes, and shows an autoscaler what
is missing. Then a second placement group asks for single GPUs on the very nodes that came out (label `ray.io/node-id`),
and the first is given back for it. If somebody else is quicker in between, it begins again.

The process is a Ray driver of its own, below the actor. A placement group that is not detached ends with the job that
made it, and its workers too; and the process ends with the actor. So after a crash of the engine, the actor,
the run or a node nothing needs to be cleaned up. (One that an actor made would outlive it: until the end of the run.)
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config import StorageConfig
from pipeline.model import localise
from pipeline.placement import Gang

NODE_LABEL = "ray.io/node-id"
ASK_S = 60.0
"""How long one call waits for a reservation that may take as long as it takes."""
SWAP_S = 10.0
"""Seconds for the single GPUs to follow their groups; on an idle cluster it takes milliseconds."""


@dataclass(frozen=True)
class Seats:
    """A placement group that is held, bundle i for the worker of rank i, and by rank the node it is on."""

    group: PlacementGroup
    nodes: tuple[str, ...]


def join(address: str) -> None:
    """Connects this process, quietly, to the cluster that its actor is in."""
    os.environ["RAY_ADDRESS"] = address  # for what vLLM may start below
    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=False)


def reserve(gang: Gang, here: str) -> Seats:
    """Takes the gang's GPUs, and waits for them as long as it takes. Groups on the node `here` come first, and stages that
    share a node follow each other."""
    while True:
        whole = placement_group(
            [gang.bundle] * gang.groups, strategy="PACK", bundle_label_selector=[gang.selector] * gang.groups
        )
        while not whole.wait(ASK_S):
            pass
        nodes = sorted(_nodes(whole), key=lambda node: (node != here, node))
        by_rank = tuple(node for node in nodes for _ in range(gang.size))
        seats = placement_group(
            [{"GPU": 1.0}] * len(by_rank),
            strategy="PACK",
            bundle_label_selector=[{NODE_LABEL: node} for node in by_rank],
        )
        remove_placement_group(whole)
        if seats.wait(SWAP_S):
            return Seats(seats, by_rank)
        remove_placement_group(seats)


def _nodes(group: PlacementGroup) -> list[str]:
    placed = placement_group_table(group)["bundles_to_node_id"]
    return [placed[i] for i in range(len(placed))]


def at(seats: Seats, rank: int) -> dict[str, Any]:
    """Ray's options that put a task or an actor beside the worker of this rank."""
    return {"num_cpus": 0, "scheduling_strategy": PlacementGroupSchedulingStrategy(seats.group, rank)}


def spread_model(seats: Seats, location: str, storage: StorageConfig, here: str) -> None:
    """Has a model that lies in an object store copied to each of the nodes, side by side, as it is to this one.

    Raises:
        HerdError: as `localise`.
    """
    if location.startswith("s3://"):
        first = {node: seats.nodes.index(node) for node in seats.nodes if node != here}
        copy = ray.remote(localise)
        try:
            ray.get([copy.options(**at(seats, rank)).remote(location, storage) for rank in first.values()])
        except ray.exceptions.RayTaskError as e:
            raise e.cause from None


def probe(seats: Seats) -> Sequence[tuple[str, list[str]]]:
    """By rank the node and the GPUs that Ray gives a worker, each from where it would be."""
    task = ray.remote(max_calls=0)(_where)  # one process a node looks from one seat after the other
    return [ray.get(task.options(num_gpus=1, **at(seats, rank)).remote()) for rank in range(len(seats.nodes))]


def _where() -> tuple[str, list[str]]:
    context = ray.get_runtime_context()
    return context.get_node_id(), list(context.get_accelerator_ids().get("GPU", []))
