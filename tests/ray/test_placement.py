"""Where engines go on Ray's own scheduler: a cluster of raylets that claim GPUs, echo engines, the real command.

Nothing here looks for a GPU. What is shown is which nodes and devices Ray gives, and that all of it is given back.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.connect import QUIET, connected
from cluster.room import live_nodes, place_on_cluster
from jobs.jobfile import load_job
from pipeline.placement import ACCELERATOR_LABEL
from tests.conftest import REPOSITORY, Herd
from tests.ray.helpers import assert_ended, failures

Write = Callable[..., Path]
ENGINE_ACTOR = "MapWorker(MapBatches(EngineActor))"
NOSET = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
DEADLINE_S = 60.0
_again: list[Any] = []


class Pretend:
    """A head and a node without GPUs, two nodes with eight H100 each, one with eight A100."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self._add(num_cpus=1)
        self._add(num_cpus=1)
        self.h100 = [self.add_gpus("H100"), self.add_gpus("H100", env_vars={NOSET: "1"})]
        self.a100 = self.add_gpus("A100")

    def add_gpus(self, kind: str, **options: Any) -> Any:
        options |= {"resources": {f"accelerator_type:{kind}": 1}, "labels": {ACCELERATOR_LABEL: kind}}
        return self._add(num_cpus=2, num_gpus=8, **options)

    def _add(self, **options: Any) -> Any:
        return self.cluster.add_node(
            include_dashboard=False, dashboard_agent_listen_port=0, object_store_memory=80 * 2**20, **options
        )


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Pretend]:
    """The cluster of this module, in the place of the one that the other modules of this folder share."""
    shared = ray.is_initialized()
    ray.shutdown()
    with pytest.MonkeyPatch.context() as environment:
        for key, value in QUIET.items():
            environment.setenv(key, value)
        made = Pretend()
        ray.init(address=made.cluster.address, log_to_driver=False, logging_level="CRITICAL")
        yield made
        ray.shutdown()
        made.cluster.shutdown()
    if shared:
        context = connected(None)
        context.__enter__()
        _again.append(context)  # kept, since it ends with the object


def wait_until(what: str, met: Callable[[], Any]) -> Any:
    """What `met` gives once it is true. Processes of others give no event to wait for."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := met()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)
    return found


def gangs() -> list[str]:
    """Placement groups that are there, ready or not."""
    return [id for id, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"]


def gone() -> bool:
    return not gangs()


def engines(out: Path) -> list[dict[str, Any]]:
    """What the engines of a run's last session said of themselves."""
    return list(json.loads((out / "run.json").read_text())["sessions"][-1]["engines"].values())


def devices(engine: dict[str, Any]) -> list[str]:
    return str(engine["visible_devices"]).split(",")


def node(raylet: Any) -> str:
    return str(raylet.node_id)[:12]


def engine_actors() -> list[int]:
    """Processes of the engine actors that are up."""
    found = ray._private.state.actors().values()
    return [a["Pid"] for a in found if a["ActorClassName"] == ENGINE_ACTOR and a["State"] == "ALIVE"]


@pytest.fixture
def job(write_input: Write, write_job: Write) -> Callable[..., Path]:
    """A job of `shards` shards of ten rows for echo engines of `tp` x `pp` pretended H100."""

    def make(shards: int = 8, *, tp: int, pp: int = 1, pool: Any = None, echo: Any = None, texts: Any = None) -> Path:
        write_input(shards * 10, num_files=1, rows_per_group=10, texts=texts)
        return write_job(
            engine={
                "kind": "echo",
                "tensor_parallel_size": tp,
                "pipeline_parallel_size": pp,
                "max_num_seqs": 10,
                "echo": echo or {},
            },
            pool={"accelerator": "H100", **(pool or {})},
            shard={"max_rows": 10},
            render={"processes": 1, "concurrency": 1},
            limits={"max_quarantined_fraction": 1},
        )

    return make


def test_engines_share_nodes_of_their_accelerator_and_no_device(
    ray_cluster: Pretend, job: Callable[..., Path], herd: Herd, tmp_path: Path
) -> None:
    assert herd("run", job(12, tp=4, pool={"min": 3}, echo={"latency_s": 0.5})).code == 0
    found = engines(tmp_path / "out")
    assert Counter(e["node"] for e in found).keys() == {node(n) for n in ray_cluster.h100}
    for engine in found:  # on one of the two nodes Ray sets no CUDA_VISIBLE_DEVICES
        assert len(set(devices(engine))) == 4 and set(devices(engine)) <= {str(d) for d in range(8)}
    taken = [(e["node"], d) for e in found for d in devices(e)]
    assert len(set(taken)) == len(taken) == 12
    assert herd("verify", tmp_path / "out").code == 0


def test_engine_over_two_nodes_has_each_tensor_parallel_group_on_one(
    ray_cluster: Pretend, job: Callable[..., Path], herd: Herd, tmp_path: Path
) -> None:
    texts = [f"row {i}" for i in range(80)]
    texts[33] = "poison"
    before = gangs()
    outcome = herd("run", job(tp=8, pp=2, texts=texts, echo={"die_on": "poison"}))
    assert (before, outcome.code) == ([], 0), outcome.err
    (engine,) = engines(tmp_path / "out")
    stages = [engine["workers"][:8], engine["workers"][8:]]
    assert [len({where for where, _ in stage}) for stage in stages] == [1, 1]
    assert {where[:12] for where, _ in engine["workers"]} == {node(n) for n in ray_cluster.h100}
    for stage in stages:
        assert sorted(gpu for _, gpus in stage for gpu in gpus) == [str(d) for d in range(8)]
    assert failures(tmp_path / "out") == {"row-00033": "engine/engine_death"}  # after two deaths
    wait_until("the placement groups to be gone", gone)
    assert herd("verify", tmp_path / "out").code == 0


def test_gang_is_given_back_when_its_actor_or_its_run_is_killed(
    ray_cluster: Pretend, job: Callable[..., Path], herd: Herd, tmp_path: Path
) -> None:
    path = job(40, tp=2, pp=8, echo={"latency_s": 0.5})
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.cluster.address, "PYTHONPATH": str(REPOSITORY)}
    command = subprocess.Popen([sys.executable, "-m", "jobs", "run", str(path)], cwd=REPOSITORY, env=environment)
    try:
        committed = tmp_path / "out" / "commits"
        wait_until("a commit", lambda: command.poll() is None and committed.is_dir() and list(committed.iterdir()))
        first = gangs()
        assert len(first) == 1
        (actor,) = engine_actors()
        os.kill(actor, signal.SIGKILL)

        def other() -> list[str]:
            here = gangs()  # two of them for a moment, when whole groups are exchanged for single GPUs
            return here if len(here) == 1 and here != first else []

        wait_until("another engine", other)
        command.send_signal(signal.SIGKILL)
        wait_until("the placement groups to be gone", gone)
    finally:
        command.kill()
        command.wait()


@pytest.mark.chaos  # needs a machine that starts an engine while another works
def test_pool_grows_with_its_backlog_and_shrinks_at_the_tail(
    ray_cluster: Pretend, job: Callable[..., Path], herd: Herd, tmp_path: Path
) -> None:
    texts = [f"{i:0800}" for i in range(240)]
    texts[-1] = "of " * 250  # as many bytes, or its shard would go first
    pool = {"min": 1, "max": 2, "shards_in_flight": 1}
    path = job(24, tp=8, pool=pool, texts=texts, echo={"latency_s": 0.8, "token_s": 0.02})
    alive: list[tuple[int, int]] = []
    ended = threading.Event()

    def watch() -> None:
        committed = tmp_path / "out" / "commits"
        while not ended.wait(0.1):
            alive.append((len(engine_actors()), len(list(committed.iterdir())) if committed.is_dir() else 0))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert herd("run", path).code == 0
    finally:
        ended.set()
        watching.join()
    counts = [here for here, _ in alive]
    assert max(counts) == 2
    assert any(here == 1 and done > 0 for here, done in alive[: counts.index(2)])
    last = len(counts) - 1 - counts[::-1].index(2)
    assert any(here == 1 for here, done in alive[last:] if done < 24)
    assert herd("verify", tmp_path / "out").code == 0


def test_read_tasks_stay_off_the_engines_nodes_while_others_have_room(
    ray_cluster: Pretend, job: Callable[..., Path], tmp_path: Path
) -> None:
    reads = place_on_cluster(load_job(str(job(tp=8)))).reads

    @ray.remote(num_cpus=0.25, **reads)
    def where(folder: str, number: int) -> str:
        Path(folder, str(number)).touch()
        while not Path(folder, "go").exists():
            time.sleep(0.02)
        return str(ray.get_runtime_context().get_node_id())

    def gpus_of_nodes(tasks: int) -> list[float]:
        """GPUs of the node of each of so many tasks that run at the same time."""
        folder = tmp_path / str(tasks)
        folder.mkdir()
        refs = [where.remote(str(folder), number) for number in range(tasks)]
        wait_until("all of them to run", lambda: len(list(folder.iterdir())) == tasks)
        (folder / "go").touch()
        gpus = {node.id: node.gpus for node in live_nodes()}
        return [gpus[id] for id in ray.get(refs)]

    assert gpus_of_nodes(6) == [0.0] * 6  # two CPUs are there without GPUs, for eight of them
    assert 8.0 in gpus_of_nodes(10)  # and what finds no room there goes where else there is some


def test_pool_that_finds_its_nodes_taken_says_so_after_a_while(
    ray_cluster: Pretend, job: Callable[..., Path], herd: Herd, tmp_path: Path
) -> None:
    taken = placement_group([{"GPU": 8, "accelerator_type:H100": 0.001}])
    assert taken.wait(20)
    outcome = herd("run", job(tp=8, pp=2, pool={"wait_s": 2}))
    remove_placement_group(taken)
    assert_ended(outcome, 4, "No engine found a place in 2 s", "16 H100 in 2 groups of 8", "herd resume")
    wait_until("the placement groups to be gone", gone)


@pytest.mark.chaos
def test_run_that_loses_a_node_goes_on_on_another(
    ray_cluster: Pretend, job: Callable[..., Path], herd: Herd, tmp_path: Path
) -> None:
    path = job(24, tp=8, pool={"min": 2}, echo={"latency_s": 0.4})

    def lose() -> None:
        committed = tmp_path / "out" / "commits"
        wait_until("commits", lambda: committed.is_dir() and len(list(committed.iterdir())) > 4)
        ray_cluster.cluster.remove_node(ray_cluster.h100.pop(), allow_graceful=False)

    losing = threading.Thread(target=lose)
    losing.start()
    outcome = herd("run", path)
    losing.join()
    assert outcome.code == 0, outcome.err
    assert herd("verify", tmp_path / "out").code == 0
