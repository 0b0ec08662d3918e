"""Writers of a run are killed at every step of the commit protocol, on local storage and on S3 servers."""

from pathlib import Path
from random import Random

import pytest

from tests.chaos.cage import Cage
from tests.chaos.jobs import assert_whole, finished, make_job
from tests.conftest import S3, Herd

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]

POINTS = [(moment, name) for name in ("data", "quarantine", "commits") for moment in ("before", "during", "after")]
SHARDS = 14


def drawn(seed: int, points: list[tuple[str, str]], again: int) -> list[tuple[str, str, int]]:
    """Each point on a shard of its own, and some of these shards a second time, on the next attempt."""
    rng = Random(seed)
    faults = [(*point, shard) for point, shard in zip(points, rng.sample(range(SHARDS), len(points)), strict=True)]
    unfinished = [shard for moment, name, shard in faults if (moment, name) != ("after", "commits")]
    hit = {shard: (moment, name) for moment, name, shard in faults}
    for shard in rng.sample(unfinished, again):
        faults.append((*rng.choice([p for p in POINTS if p != hit[shard]]), shard))
    return faults


def carry_out(
    ground: Cage, folder: Path, herd: Herd, seed: int, faults: list[tuple[str, str, int]], s3: S3 | None = None
) -> None:
    job = make_job(folder, seed, shards=SHARDS, s3=s3)
    planned = ground.plan(faults)
    finished(ground, job, ground.herd("run", job.path))
    assert {fault.get("id") for fault in ground.injected()} >= set(planned)
    assert_whole(job, herd)


def test_run_whose_writers_are_killed_once_for_each_object_ends_whole(ground: Cage, tmp_path: Path, herd: Herd) -> None:
    points = [
        ("before", "data"),
        ("after", "data"),
        ("during", "quarantine"),
        ("before", "commits"),
        ("after", "commits"),
    ]
    carry_out(ground, tmp_path, herd, 1, drawn(1, points, 1))


@pytest.mark.parametrize("seed", [11, 12])
def test_run_whose_writers_are_killed_at_every_point_ends_whole(
    ground: Cage, tmp_path: Path, herd: Herd, seed: int
) -> None:
    carry_out(ground, tmp_path, herd, seed, drawn(seed, POINTS, 3))


@pytest.mark.parametrize("seed", [21])
def test_run_on_s3_whose_writers_are_killed_at_every_point_ends_whole(
    ground: Cage, tmp_path: Path, herd: Herd, s3: S3, seed: int
) -> None:
    carry_out(ground, tmp_path, herd, seed, drawn(seed, POINTS, 3), s3)
