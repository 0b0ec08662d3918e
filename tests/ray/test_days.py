"""Jobs for a day, and for a range of days."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Herd
from tests.ray.helpers import assert_ended, rows_of


@pytest.fixture
def daily(tmp_path: Path, write_job: Callable[..., Path]) -> Callable[..., Path]:
    """Writes input of some days of November 2026, and a job over one."""

    def write(*days: int, **sections: Any) -> Path:
        for day in days:
            folder = tmp_path / "logs" / f"dt=2026-11-{day:02d}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"id": [f"{day}-{i}" for i in range(5)], "text": ["a"] * 5}), folder / "a.parquet")
        return write_job(
            name="logs-{{ ds_nodash }}",
            input={"uri": f"{tmp_path}/logs/dt={{{{ ds }}}}/*.parquet"},
            **{
                "prompt": {"user": "{{ text }} on {{ id }}"},
                "output": {"uri": f"{tmp_path}/out/{{{{ ds }}}}"},
                **sections,
            },
        )

    return write


def test_run_for_a_day_takes_its_input_and_output(tmp_path: Path, herd: Herd, daily: Callable[..., Path]) -> None:
    job = daily(1, 2)
    outcome = herd("run", job, "--ds", "2026-11-02", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["run_id"].startswith("logs-20261102-")
    assert [r["response"] for r in rows_of(tmp_path / "out" / "2026-11-02")] == [f"a on 2-{i}" for i in range(5)]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["2026-11-02"]
    plan = json.loads(herd("plan", job, "--ds", "2026-11-01", "--json").out)
    assert (plan["num_rows"], plan["output"]) == (5, f"{tmp_path}/out/2026-11-01")
    assert herd("verify", tmp_path / "out" / "2026-11-02").code == 0


def test_day_that_is_missing_not_wanted_or_wrong_is_refused(herd: Herd, daily: Callable[..., Path]) -> None:
    job = daily(1)
    assert_ended(herd("run", job), 2, "The job is for a day, by its `name`", "--ds today")
    assert_ended(herd("plan", job), 2, "The job is for a day")
    assert_ended(herd("run", job, "--ds", "soon"), 2, "`soon` is no date")
    assert_ended(herd("plan", job, "--ds", "2026-11-01..2026-11-02"), 2, "goes with `herd run` alone")
    assert_ended(herd("run", job, "--ds", "2026-11-01", "--fail-fast"), 2, "--fail-fast goes with a range")
    assert_ended(herd("doctor", "--ds", "2026-11-01"), 2, "--ds goes with a job")


def test_range_runs_each_day_and_again_only_those_that_failed(
    tmp_path: Path, herd: Herd, daily: Callable[..., Path]
) -> None:
    job = daily(1, 3)
    outcome = herd("run", job, "--ds", "2026-11-01..2026-11-03", "--json")
    assert outcome.code == 2
    runs = json.loads(outcome.out)["runs"]
    assert [(r["name"], r["exit_code"]) for r in runs] == [("2026-11-01", 0), ("2026-11-02", 2), ("2026-11-03", 0)]
    assert "No file matches this pattern" in runs[1]["error"]
    assert "Error: 2026-11-02: No file matches" in outcome.err
    stood = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}

    daily(2)
    again = herd("run", job, "--ds", "2026-11-01..2026-11-03")
    assert again.code == 0
    table = {line.split()[0]: line for line in again.out.splitlines() if line.startswith("2026")}
    assert "done before" in table["2026-11-01"] and "done before" in table["2026-11-03"]
    assert table["2026-11-02"].rstrip().endswith("done")
    assert all(p.stat().st_mtime_ns == at for p, at in stood.items())
    for day in (1, 2, 3):
        assert len(rows_of(tmp_path / "out" / f"2026-11-0{day}")) == 5


def test_range_that_fails_fast_names_the_days_that_were_not_run(
    tmp_path: Path, herd: Herd, daily: Callable[..., Path]
) -> None:
    job = daily(2, 3)
    outcome = herd("run", job, "--ds", "2026-11-01..2026-11-03", "--fail-fast")
    assert outcome.code == 2
    assert outcome.out.count("not run") == 2
    assert not (tmp_path / "out").exists()


def test_range_exits_with_the_worst_code(herd: Herd, daily: Callable[..., Path]) -> None:
    job = daily(1, 2, engine={"kind": "echo", "echo": {"fail_on": "on 2-3"}})
    outcome = herd("run", job, "--ds", "2026-11-01..2026-11-02", "--json")
    assert outcome.code == 3
    assert [r["exit_code"] for r in json.loads(outcome.out)["runs"]] == [0, 3]


def test_range_into_one_output_is_refused(tmp_path: Path, herd: Herd, daily: Callable[..., Path]) -> None:
    job = daily(1, 2, output={"uri": f"{tmp_path}/out"})
    outcome = herd("run", job, "--ds", "2026-11-01..2026-11-02")
    assert_ended(outcome, 2, "The runs of 2026-11-01 and of 2026-11-02 would have one output", "{{ ds }}")


def test_range_of_an_incremental_job_shares_its_root(tmp_path: Path, herd: Herd, daily: Callable[..., Path]) -> None:
    uri = f"{tmp_path}/logs/dt={{{{ ds }}}}/*.parquet"
    job = daily(1, 2, output={"uri": f"{tmp_path}/out"})
    options = ["--set", f"input={{uri: '{uri}', incremental: true}}"]
    outcome = herd("run", job, "--ds", "2026-11-01..2026-11-02", *options, "--json")
    assert outcome.code == 0
    assert [r["name"] for r in json.loads(outcome.out)["runs"]] == ["2026-11-01 000001", "2026-11-02 000002"]
    verdict = json.loads(herd("verify", tmp_path / "out", "--json").out)
    assert (verdict["complete"], verdict["files_claimed"], verdict["rows_ok"]) == (True, 2, 10)
