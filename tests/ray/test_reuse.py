"""Identical requests are answered once: within a run, and through a cache across runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.conftest import Herd

Write = Callable[..., Path]


def rows_of(out: Path) -> list[dict[str, Any]]:
    parts = [pq.ParquetFile(part).read().to_pylist() for part in sorted((out / "data").glob("*.parquet"))]
    return [row for part in parts for row in part]


def totals(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "_SUCCESS").read_text()))


def session(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text())["sessions"][-1])


def again(job: Path, tmp_path: Path, name: str, **sections: Any) -> Path:
    """The job in a file of its own, with another output."""
    other = yaml.safe_load(job.read_text()) | {"output": {"uri": str(tmp_path / name)}} | sections
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(other))
    return path


def test_identical_rows_of_a_run_are_asked_once_unless_they_are_chance(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(60, texts=[f"question {i % 6}" for i in range(60)])
    job = write_job()
    assert herd("run", job).code == 0
    rows = rows_of(tmp_path / "out")
    assert [r["response"] for r in rows] == [f"question {i % 6}" for i in range(60)]
    run_id = totals(tmp_path / "out")["run_id"]
    assert sum(r["lineage"]["cached_from"] is None for r in rows) == 6
    assert {r["lineage"]["cached_from"] for r in rows} == {None, run_id}
    assert (totals(tmp_path / "out")["rows_reused"], totals(tmp_path / "out")["rows_cached"]) == (54, 0)
    assert len({r["lineage"]["request_sha256"] for r in rows}) == 6
    assert herd("verify", tmp_path / "out").code == 0

    for name, sections in (("warm", {"sampling": {"temperature": 0.5}}), ("each", {"cache": {"in_run": False}})):
        assert herd("run", again(job, tmp_path, name, **sections)).code == 0
        assert totals(tmp_path / name)["rows_reused"] == 0


def test_second_run_of_the_same_rows_starts_no_engine(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(60, texts=[None if i == 7 else f"question {i}" for i in range(60)])
    job = write_job(cache={"uri": str(tmp_path / "answers")}, limits={"max_quarantined_fraction": 0.1})
    assert herd("run", job).code == 0
    assert herd("run", again(job, tmp_path, "second")).code == 0
    first, second = rows_of(tmp_path / "out"), rows_of(tmp_path / "second")
    assert session(tmp_path / "out")["engines"] and session(tmp_path / "second")["engines"] == {}
    assert [(r["id"], r["response"]) for r in second] == [(r["id"], r["response"]) for r in first]
    assert [r["lineage"]["request_sha256"] for r in second] == [r["lineage"]["request_sha256"] for r in first]
    assert {r["lineage"]["cached_from"] for r in second} == {totals(tmp_path / "out")["run_id"]}
    assert {r["lineage"]["engine"] for r in second} == {"cache"}
    done = totals(tmp_path / "second")
    assert (done["rows_ok"], done["rows_quarantined"], done["rows_cached"]) == (59, 1, 59)
    assert herd("verify", tmp_path / "second").code == 0


def test_rows_that_are_new_are_asked_and_the_others_are_not(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(40)
    job = write_job(cache={"uri": str(tmp_path / "answers")})
    assert herd("run", job).code == 0
    write_input(40, texts=[f"question number {i}" if i % 4 else f"new {i}" for i in range(40)])
    assert herd("run", again(job, tmp_path, "second")).code == 0
    rows = rows_of(tmp_path / "second")
    assert [r["id"] for r in rows if r["lineage"]["cached_from"] is None] == [f"row-{i:05d}" for i in range(0, 40, 4)]
    assert totals(tmp_path / "second")["rows_cached"] == 30
    # and other settings find nothing of it
    assert herd("run", again(job, tmp_path, "third", sampling={"max_tokens": 2})).code == 0
    assert totals(tmp_path / "third")["rows_cached"] == 0
