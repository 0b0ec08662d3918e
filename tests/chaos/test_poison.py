"""Rows that kill or hang the engine, while the actors that hunt them are killed too."""

from pathlib import Path
from random import Random

import pytest

from tests.chaos.cage import ENGINE_ACTOR, Cage
from tests.chaos.jobs import after_commits, assert_whole, finished, make_job
from tests.conftest import S3, Herd

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


def carry_out(ground: Cage, folder: Path, herd: Herd, seed: int, s3: S3 | None) -> None:
    poison, sleepy = 3, 1
    job = make_job(folder, seed, shards=16, poison=poison, sleepy=sleepy, latency_s=0.1, limits={"stall_s": 15}, s3=s3)
    rng = Random(seed)
    planned = ground.plan(
        [
            (rng.choice(["before", "after"]), rng.choice(["data", "quarantine"]), shard)
            for shard in rng.sample(range(16), 3)
        ]
    )
    command = ground.herd("run", job.path)
    for at in sorted(rng.sample(range(1, 12), 3)):
        after_commits(job, at, command)
        ground.kill_one("engine actor killed", ENGINE_ACTOR, command)
    finished(ground, job, command)
    assert {fault.get("id") for fault in ground.injected()} >= set(planned)
    assert_whole(job, herd)
    for _ in range(poison):
        ground.note("poison row")
    for _ in range(sleepy):
        ground.note("row that hangs the engine")


@pytest.mark.parametrize("seed", [81, 82])
def test_poison_rows_alone_are_quarantined_while_actors_die(
    ground: Cage, tmp_path: Path, herd: Herd, seed: int
) -> None:
    carry_out(ground, tmp_path, herd, seed, None)


def test_poison_rows_alone_are_quarantined_on_s3_while_actors_die(
    ground: Cage, tmp_path: Path, herd: Herd, s3: S3
) -> None:
    carry_out(ground, tmp_path, herd, 83, s3)
