"""The sweep over engine settings, on the echo engine."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Herd
from tests.ray.helpers import assert_ended


def test_bench_of_a_job_compares_settings_and_leaves_nothing_behind(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(100)
    outcome = herd("bench", write_job(), "--rows", 40, "--max-num-seqs", "8", "--max-num-batched-tokens", "-", "--json")
    assert outcome.code == 0, outcome
    told = json.loads(outcome.out)
    assert [t["setting"] for t in told["trials"]] == [{}, {"max_num_seqs": 8}]
    assert all(t["rows_per_s"] > 0 and t["failure"] is None for t in told["trials"])
    assert told["best"] in ({}, {"max_num_seqs": 8})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["input", "job.yaml"]


def test_bench_of_a_job_that_cannot_run_says_why(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path]
) -> None:
    write_input(10)
    assert_ended(herd("bench", write_job(prompt={"user": "{{ nothing }}"})), 2, "nothing")


def test_bench_refuses_points_that_are_no_numbers(herd: Herd, write_job: Callable[..., Path]) -> None:
    outcome = herd("bench", write_job(), "--max-num-seqs", "many")
    assert outcome.code == 2 and "64,128" in outcome.err
