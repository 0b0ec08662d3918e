"""What earlier runs' records say, from `run.json` as runs write it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.records import earlier_sessions, read_records
from pipeline.config import RunConfig, StorageConfig
from pipeline.errors import ConfigError
from pipeline.spread import Range

from .helpers import job

VIEW = {"rows_per_s": 100.0, "window_s": 10.0, "prompt_tokens_per_s": 5000.0, "output_tokens_per_s": 400.0}


def session(start_s: float = 20.0, **engines: dict[str, Any]) -> dict[str, Any]:
    return {"by_engine": engines, "engines": {name: {"start_s": start_s} for name in engines}, "seconds": 40.0}


def left(folder: Path, *sessions: dict[str, Any], config: RunConfig | None = None) -> str:
    config = config or job()
    record = {
        "schema_version": 1,
        "run_id": "r",
        "config": config.model_dump(mode="json"),
        "model": {"name": config.model or "echo", "location": config.model or "echo"},
        "sessions": list(sessions),
        **dict.fromkeys(("columns", "fingerprint", "read_schema", "rows", "settings", "shards")),
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    return str(folder)


def test_records_of_one_engine_are_its_own(tmp_path: Path) -> None:
    found = read_records(left(tmp_path, session(a=VIEW)), StorageConfig(), job())
    assert (found.rows_per_s, found.rows) == (Range.exactly(100), 1000)
    assert (found.prompt_tokens, found.output_tokens) == (50, 4)
    assert found.start_s == Range.exactly(20)


def test_records_of_several_engines_range_from_the_slowest_to_the_fastest(tmp_path: Path) -> None:
    slow = {**VIEW, "rows_per_s": 40.0, "window_s": 20.0}
    found = read_records(left(tmp_path, session(a=VIEW), session(b=slow, start_s=40.0)), StorageConfig(), job())
    assert found.rows_per_s == Range(40, 1800 / 30, 100)
    assert found.start_s == Range(20, 30, 40)


def test_records_of_a_run_under_way_are_its_live_figures(tmp_path: Path) -> None:
    where = left(tmp_path, {"started_at": "now"})
    live = {"run_id": "r", "written_at": "2026-01-01T00:00:00+00:00", **session(a=VIEW)}
    (tmp_path / "progress.json").write_text(json.dumps(live))
    assert read_records(where, StorageConfig(), job()).rows_per_s == Range.exactly(100)


def test_records_of_a_handful_of_rows_tell_no_speed(tmp_path: Path) -> None:
    found = read_records(left(tmp_path, session(a={**VIEW, "window_s": 0.1})), StorageConfig(), job())
    assert found.rows_per_s is None and found.start_s == Range.exactly(20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": {"kind": "vllm"}, "model": "m"}, "engine echo there, vllm here"),
        ({"pool": {"accelerator": "H100"}}, "accelerator CPU there, H100 here"),
    ],
)
def test_records_of_another_kind_of_run_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read_records(left(tmp_path, session(a=VIEW)), StorageConfig(), job(**changes))


def test_records_of_another_model_are_refused(tmp_path: Path) -> None:
    theirs, ours = (job(engine={"kind": "vllm"}, model=model) for model in ("a/b", "c/d"))
    with pytest.raises(ConfigError, match="model a/b there, c/d here"):
        read_records(left(tmp_path, session(a=VIEW), config=theirs), StorageConfig(), ours)


def test_earlier_sessions_of_an_empty_output_are_none(tmp_path: Path) -> None:
    assert earlier_sessions(job(output={"uri": str(tmp_path / "none")})) is None


def test_earlier_sessions_of_the_jobs_own_output_are_found(tmp_path: Path) -> None:
    found = earlier_sessions(job(output={"uri": left(tmp_path, session(a=VIEW))}))
    assert found is not None and found.rows == 1000
