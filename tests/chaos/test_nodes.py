"""Nodes of a cluster die, are drained, or are cut off, with engines on them."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.core.generated import autoscaler_pb2

from tests.chaos.cage import ENGINE_ACTOR, Cage, Command, Nodes, wait_until
from tests.chaos.jobs import Job, after_commits, assert_whole, finished, make_job
from tests.conftest import Herd

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

ENGINE_NODE = {"num_cpus": 1, "num_gpus": 1, "resources": {"accelerator_type:H100": 1}}
"""A node that claims a GPU, so that there is one engine to a node; the echo engine does not look for it."""
SHARDS = 40


@pytest.fixture
def nodes(cage: Cage) -> Nodes:
    """A head without room for engines, and two nodes with room for one each."""
    made = Nodes(cage, {"num_cpus": 1}, ENGINE_NODE, ENGINE_NODE)
    cage.environment["RAY_ADDRESS"] = made.address
    return made


@pytest.fixture
def spread(tmp_path: Path) -> Callable[[int], Job]:
    def make(seed: int) -> Job:
        pool = {"min": 2, "accelerator": "H100"}
        return make_job(tmp_path, seed, shards=SHARDS, latency_s=0.3, max_num_seqs=1, pool=pool)

    return make


def raylet_with_an_engine(cage: Cage, nodes: Nodes, command: Command) -> dict[str, Any]:
    """A node that an engine actor runs on, once both do."""

    def both() -> set[int]:
        assert command.code is None, command.said
        parents: set[int] = set()
        for process in cage.find(ENGINE_ACTOR):
            with contextlib.suppress(psutil.Error):
                parents.add(process.ppid())
        return parents if len(parents) == 2 else set()

    raylets = wait_until("engines on two nodes", both)
    return next(node for node in nodes.nodes if node["raylet"] in raylets)


def below(raylet: int) -> list[psutil.Process]:
    """A node's processes, the raylet first."""
    top = psutil.Process(raylet)
    return [top, *top.children(recursive=True)]


def kill_node(cage: Cage, node: dict[str, Any]) -> None:
    for process in below(node["raylet"]):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    cage.note("node killed")


def test_run_that_loses_a_node_goes_on_on_another(
    cage: Cage, nodes: Nodes, spread: Callable[[int], Job], herd: Herd
) -> None:
    job = spread(91)
    command = cage.herd("run", job.path)
    node = raylet_with_an_engine(cage, nodes, command)
    after_commits(job, 3, command)
    kill_node(cage, node)
    nodes.add(**ENGINE_NODE)
    finished(cage, job, command)
    assert_whole(job, herd)


def test_run_that_loses_a_node_for_good_goes_on_on_what_is_left(
    cage: Cage, nodes: Nodes, spread: Callable[[int], Job], herd: Herd
) -> None:
    job = spread(92)
    command = cage.herd("run", job.path)
    node = raylet_with_an_engine(cage, nodes, command)
    after_commits(job, 3, command)
    kill_node(cage, node)
    finished(cage, job, command)
    assert_whole(job, herd)


def test_engines_on_a_node_that_is_drained_take_no_new_shard_and_move(
    cage: Cage, nodes: Nodes, spread: Callable[[int], Job], herd: Herd
) -> None:
    job = spread(93)
    command = cage.herd("run", job.path)
    node = raylet_with_an_engine(cage, nodes, command)
    after_commits(job, 3, command)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + 3600) * 1000)
    client = ray._raylet.GcsClient(address=nodes.address)
    accepted, why = client.drain_node(node["id"], reason, "the machine is wanted back", deadline_ms)
    assert accepted, why
    cage.note("node drained")
    engines = {p.pid for p in below(node["raylet"]) if "EngineActor" in " ".join(p.cmdline())}
    nodes.add(**ENGINE_NODE)
    wait_until("the engine to leave", lambda: not any(psutil.pid_exists(pid) for pid in engines), 300)
    finished(cage, job, command)
    assert_whole(job, herd)
    session = job.store.read(f"{job.out}/run.json").decode()
    assert "is being drained" in session


def test_writer_on_a_node_that_was_cut_off_changes_nothing_when_it_wakes(
    cage: Cage, nodes: Nodes, spread: Callable[[int], Job], herd: Herd
) -> None:
    job = spread(94)
    (fault,) = cage.plan([("before", "data", 2)], act="wait")
    command = cage.herd("run", job.path)
    found = wait_until("a writer at the point", lambda: [f for f in cage.injected() if f.get("id") == fault])
    raylet = psutil.Process(found[0]["pid"]).ppid()
    asleep = below(raylet)
    for process in asleep:
        process.suspend()
    cage.note("node frozen until the cluster gave it up")
    with thawed(asleep):
        nodes.add(**ENGINE_NODE)
        wait_until("its shard to be committed elsewhere", lambda: 2 in committed(job, command))
        (cage.folder / "released").touch()
    finished(cage, job, command)
    assert_whole(job, herd)


def committed(job: Job, command: Command) -> set[int]:
    assert command.code in (None, 0), command.said
    return {int(f.uri.rsplit("/", 1)[-1][:-5]) for f in job.store.list_folder(f"{job.out}/commits")}


@contextlib.contextmanager
def thawed(processes: list[psutil.Process]) -> Iterator[None]:
    """Wakes processes at the end of the block, the raylet last: what it watched over has a moment for itself."""
    try:
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
