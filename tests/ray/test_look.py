"""A look at some rows before the whole: `--limit`, `--sample`, and a run with no output named."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Herd
from tests.ray.helpers import assert_ended, rows_of


def test_limit_answers_the_first_rows_and_is_proven_complete(
    tmp_path: Path, herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path]
) -> None:
    write_input(100)
    job = write_job()
    assert herd("run", job, "--limit", 33).code == 0
    out = tmp_path / "out"
    assert [r["id"] for r in rows_of(out)] == [f"row-{i:05d}" for i in range(33)]
    plan = pq.read_table(out / "plan.parquet").to_pylist()
    assert [(s["row_group"], s["first_row"], s["num_rows"]) for s in plan] == [(0, 0, 20), (1, 0, 13)]
    verdict = json.loads(herd("verify", out, "--json").out)
    assert verdict["complete"] and verdict["rows_planned"] == 33

    again = herd("run", job, "--limit", 33)
    assert again.code == 0 and "nothing was left to do" in again.out
    assert_ended(herd("run", job), 2, "The output holds another run", "input.limit: 33 -> None")
    assert_ended(herd("run", job, "--limit", 34), 2, "input.limit: 33 -> 34")
    assert herd("resume", out).code == 0
    assert len(rows_of(out)) == 33


def test_sample_answers_rows_of_all_files_the_same_for_the_same_seed(
    tmp_path: Path, herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path]
) -> None:
    write_input(200, num_files=4)
    job = write_job()
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert herd("run", job, "--sample", 24, "--seed", seed, "--output", tmp_path / name).code == 0
        found.append([r["id"] for r in rows_of(tmp_path / name)])
        assert herd("verify", tmp_path / name).code == 0
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 24
    assert {int(i[4:]) // 50 for i in found[0]} == {0, 1, 2, 3}
    assert_ended(herd("run", job, "--output", tmp_path / "a"), 2, "input.sample: {'rows': 24, 'seed': 0} -> None")


def test_limit_and_sample_in_a_job_file_are_what_the_options_set(
    tmp_path: Path, herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path]
) -> None:
    write_input(100)
    job = write_job(input={"uri": str(tmp_path / "input"), "limit": 7})
    assert json.loads(herd("plan", job, "--json").out)["num_rows"] == 7
    assert json.loads(herd("plan", job, "--limit", 9, "--json").out)["num_rows"] == 9
    assert_ended(herd("plan", job, "--sample", 9), 2, "give either `limit` or `sample`")
    assert_ended(herd("plan", job, "--seed", 9), 2, "`input.sample.rows` is missing")


def test_run_without_an_output_says_where_its_answers_go(
    tmp_path: Path, herd: Herd, write_input: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_input(40)
    monkeypatch.chdir(tmp_path)
    outcome = herd("run", "--input", "input", "--prompt", "{{ text }}", "--limit", 5, "--set", "engine.kind=echo")
    assert outcome.code == 0
    (out,) = (tmp_path / "out").iterdir()
    assert f"The answers go to ./out/{out.name}" in outcome.err
    assert out.name.startswith("adhoc-")
    assert len(rows_of(out)) == 5
