"""The process that drives a run is killed while it opens and while it closes the run's books."""

from pathlib import Path

import pytest

from tests.chaos.cage import Cage
from tests.chaos.jobs import Job, assert_whole, finished, make_job
from tests.conftest import S3, Herd

pytestmark = [pytest.mark.timeout(1800)]

MOMENTS = ("before", "during", "after")
OPENING = [(moment, name, None) for name in ("_lease.json", "plan.parquet", "run.json") for moment in MOMENTS]
CLOSING = [
    *(("before", "_SUCCESS", None), ("during", "_SUCCESS", None)),
    *((moment, "run.json", None) for moment in MOMENTS),
    ("after", "_SUCCESS", None),
]
"""The first of these ends a session that answered all shards; those after it find nothing left to answer."""


def killed(cage: Cage, point: tuple[str, str, None], *arguments: object) -> None:
    (fault,) = cage.plan([point])
    command = cage.herd(*arguments)
    assert command.wait() == 4 and "killed by SIGKILL" in command.said, (point, command.said)  # by its guard
    assert cage.injected()[-1]["id"] == fault


def carry_out(cage: Cage, job: Job, herd: Herd, opening: list[tuple[str, str, None]]) -> None:
    for point in opening:
        killed(cage, point, "run", job.path)
    for point in CLOSING:
        killed(cage, point, "run", job.path)
    finished(cage, job, cage.herd("run", job.path))
    assert_whole(job, herd)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("_lease.json", marks=pytest.mark.chaos),
        "plan.parquet",
        pytest.param("run.json", marks=pytest.mark.chaos),
    ],
)
def test_run_killed_while_it_opens_its_books_is_run_again(cage: Cage, tmp_path: Path, herd: Herd, name: str) -> None:
    """Without the answering: the second command is killed too, just after it has opened its books."""
    job = make_job(tmp_path, 31, shards=2)
    killed(cage, ("during", name, None), "run", job.path)
    killed(cage, ("after", "run.json", None), "run", job.path)
    assert herd("status", job.out).code == 0


@pytest.mark.chaos
@pytest.mark.parametrize("s3", ["moto", "rclone"], indirect=True)
def test_run_on_s3_killed_while_it_opens_its_books_is_run_again(cage: Cage, tmp_path: Path, herd: Herd, s3: S3) -> None:
    job = make_job(tmp_path, 34, shards=2, s3=s3)
    killed(cage, ("during", "run.json", None), "run", job.path)
    assert not job.store.exists(f"{job.out}/run.json")
    killed(cage, ("after", "run.json", None), "run", job.path)
    assert herd("status", job.out, *job.options).code == 0


@pytest.mark.chaos
def test_run_killed_at_every_step_of_its_books_ends_whole(ground: Cage, tmp_path: Path, herd: Herd) -> None:
    carry_out(ground, make_job(tmp_path, 32, shards=4), herd, OPENING)


@pytest.mark.chaos
def test_run_on_s3_killed_at_every_step_of_its_books_ends_whole(
    ground: Cage, tmp_path: Path, herd: Herd, s3: S3
) -> None:
    carry_out(ground, make_job(tmp_path, 33, shards=4, s3=s3), herd, OPENING)
