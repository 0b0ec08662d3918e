"""Asks every live node of a connected Ray cluster for its probe, all at once. The only part of the preflight that knows Ray."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.preflight.findings import Answer
from cluster.preflight.probe import Probe, Wanted, take_probe

LIMIT_S = 60.0
"""Seconds that a node gets to answer. The first task of a node starts a process there and imports what it needs."""


def ask_nodes(
    wanted: Wanted,
    accelerator: str | None = None,
    *,
    limit_s: float = LIMIT_S,
    take: Callable[[Wanted], Probe] = take_probe,
) -> list[Answer]:
    """The answer of each live node, in the order of their names. A node that does not answer within `limit_s` seconds, dies
    or cannot run the probe has an answer that says so. The model is looked at only where an engine may be placed."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    places = node_places([node["Resources"] for node in nodes], accelerator)
    asked_s = time.time()
    pending: dict[Any, int] = {}
    task = ray.remote(num_cpus=0, max_retries=0)(take)
    for n, node in enumerate(nodes):
        here = wanted if places[n] else replace(wanted, model=None)
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        pending[task.options(scheduling_strategy=where).remote(here)] = n
    names = node_names(nodes)
    answers: list[Answer] = []

    def answer(n: int, probe: Probe | None, why: str = "") -> Answer:
        gpus = int(nodes[n]["Resources"].get("GPU", 0))
        return Answer(names[n], probe, why, asked_s, time.time(), places[n], gpus)

    deadline = time.monotonic() + limit_s
    while pending:
        done, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            break
        (ref,) = done
        n = pending.pop(ref)
        try:
            answers.append(answer(n, ray.get(ref)))
        except ray.exceptions.RayError as e:
            lines = [line for line in str(e).splitlines() if line.strip()]
            answers.append(answer(n, None, lines[-1].strip() if lines else type(e).__name__))
    for ref, n in pending.items():
        ray.cancel(ref, force=True)
        answers.append(answer(n, None, f"nothing came back within {limit_s:g} s"))
    return sorted(answers, key=lambda a: a.node)


def node_places(resources: Sequence[Mapping[str, float]], accelerator: str | None) -> list[bool]:
    """Whether each node may hold an engine: it has the accelerator, or where none is asked for, it has CPUs."""
    if accelerator is None:
        return [r.get("CPU", 0) > 0 for r in resources]
    return [f"accelerator_type:{accelerator}" in r for r in resources]


def node_names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each node's host name, with the beginning of its id where several have the same."""
    hosts = [str(node["NodeManagerHostname"]) for node in nodes]
    times = Counter(hosts)
    return [h if times[h] == 1 else f"{h}/{node['NodeID'][:6]}" for h, node in zip(hosts, nodes, strict=True)]
