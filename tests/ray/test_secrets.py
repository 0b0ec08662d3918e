"""Credentials of the environment are nowhere in what a run, its cluster or its faults say or leave."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import ray

from tests.conftest import S3_ENVIRONMENT, Herd

SECRET = S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"]


def test_secrets_are_in_no_file_of_a_run_and_in_nothing_that_it_says(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    write_input(40)
    job = write_job(
        engine={"kind": "echo", "echo": {"die_on": "number 13", "fail_on": "number 7"}},
        limits={"max_quarantined_fraction": 1},
    )
    said = herd("run", job, "--verbose")
    assert said.code == 0, said.err
    said_more = [herd(verb, tmp_path / "out", "--json") for verb in ("status", "verify", "show")]
    for outcome in (said, *said_more):
        assert SECRET not in outcome.out + outcome.err
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert files
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file


def test_secrets_are_not_in_the_logs_of_the_cluster(finished: Path) -> None:
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    looked_at = [f for f in logs.rglob("*") if f.is_file()]
    assert looked_at
    assert [f.name for f in looked_at if SECRET.encode() in f.read_bytes()] == []


def test_secrets_are_not_in_the_runtime_environment_that_ray_shows(finished: Path) -> None:
    assert SECRET not in json.dumps(ray.get_runtime_context().runtime_env, default=str)
    assert SECRET not in ray.get_runtime_context().get_runtime_env_string()
