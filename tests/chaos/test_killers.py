"""Processes of a run are killed from outside, at moments that a seed draws: engines, actors, readers, drivers, Ray."""

import signal
from pathlib import Path
from random import Random

import psutil
import pytest

from tests.chaos.cage import ENGINE, ENGINE_ACTOR, LEDGER, Cage, Command
from tests.chaos.jobs import Job, after_commits, assert_whole, finished, make_job
from tests.conftest import Herd

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def kill_session(cage: Cage, command: Command) -> None:
    """Kills a command with its Ray and all that runs on it, as when the machine loses power."""
    processes = cage.processes()
    command.process.kill()  # first, since it would speak of the death of the others
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def test_run_whose_engine_is_killed_again_and_again_quarantines_no_row_for_it(
    ground: Cage, tmp_path: Path, herd: Herd
) -> None:
    job = make_job(tmp_path, 41, shards=34, rows=5, latency_s=0.2, pool={"min": 1})
    ground.plan([])
    command = ground.herd("run", job.path)
    rng, at = Random(41), 0
    for _ in range(6):
        # so far apart that the rows which were being worked on have been answered: twice alone with a dying engine is
        # what convicts a row
        at = max(at + 4 + rng.randrange(2), job.commits() + 4)
        after_commits(job, at, command)
        ground.kill_one("engine process killed", ENGINE, command)
    finished(ground, job, command)
    assert_whole(job, herd)


@pytest.mark.parametrize("seed", [51, 52])
def test_run_whose_actors_readers_and_ledger_are_killed_ends_whole(
    ground: Cage, tmp_path: Path, herd: Herd, seed: int
) -> None:
    job = make_job(tmp_path, seed, shards=20, latency_s=0.2)
    rng = Random(seed)
    moments = ["before", "after", "before", "after"]
    planned = ground.plan([(m, "read", s) for m, s in zip(moments, rng.sample(range(20), 4), strict=True)])
    command = ground.herd("run", job.path)
    victims = [("engine actor killed", ENGINE_ACTOR)] * 4 + [("ledger killed", f"ray::{LEDGER}")]
    rng.shuffle(victims)
    for at, (kind, title) in zip(sorted(rng.sample(range(12), len(victims))), victims, strict=True):
        after_commits(job, at, command)
        ground.kill_one(kind, title, command)
    finished(ground, job, command)
    assert {fault.get("id") for fault in ground.injected()} >= set(planned)
    assert_whole(job, herd)


def test_run_whose_driver_is_killed_again_and_again_is_resumed_to_its_end(
    ground: Cage, tmp_path: Path, herd: Herd
) -> None:
    job = make_job(tmp_path, 61, shards=20, latency_s=0.3)
    ground.plan([])
    command = ground.herd("run", job.path)
    for at in sorted(Random(61).sample(range(1, 15), 4)):
        after_commits(job, max(at, job.commits()), command)
        command.process.kill()
        ground.note("driver killed")
        assert command.wait() == -signal.SIGKILL
        command = ground.herd("resume", job.out)
    finished(ground, job, command)
    assert_whole(job, herd)


@pytest.mark.parametrize(
    ("seed", "victim"), [(71, "driver"), (72, "raylet/raylet"), (73, "gcs/gcs_server"), (74, "everything")]
)
def test_run_that_loses_its_ray_is_resumed_to_its_end(
    cage: Cage, tmp_path: Path, herd: Herd, seed: int, victim: str
) -> None:
    job = make_job(tmp_path, seed, latency_s=0.5, max_num_seqs=1)
    command = cage.herd("run", job.path)
    after_commits(job, Random(seed).randrange(1, 5), command)
    if victim == "everything":
        kill_session(cage, command)
        cage.note("driver and Ray killed at once")
    elif victim == "driver":
        command.process.kill()
        cage.note("driver killed, with a Ray of its own")
    else:
        cage.kill_one(f"{victim.rsplit('/')[-1]} killed", victim, command)
    command.wait()
    finished(cage, job, cage.herd("resume", job.out))
    assert_whole(job, herd)
    if victim in ("driver", "everything"):
        assert command.code == -signal.SIGKILL
    else:
        assert_resumable(job, command)


def assert_resumable(job: Job, command: Command) -> None:
    """The command ended as a failed run does: with a sentence, and how to go on."""
    assert command.code == 4, (command.code, command.said)
    assert f"herd resume {job.out}" in command.said
    assert "Traceback" not in command.said
