import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import StorageConfig
from pipeline.errors import HerdError, StorageError
from pipeline.lease import FencedError
from pipeline.live import NAME, LiveFile, read_live
from pipeline.output import Output
from pipeline.progress import Progress
from pipeline.storage import Store

ENGINES = {"echo #1": {"window_s": 2.0, "rows": 10, "busy_s": 1.9}}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(str(tmp_path / "out"), Store(str(tmp_path), StorageConfig()))


def fine() -> None:
    """The output is still this session's."""


def test_live_file_of_a_session_holds_its_last_figures(output: Output) -> None:
    live = LiveFile(output, "run-1", fine)
    live.offer(Progress())
    live.close(Progress(rows_ok=10, engines=ENGINES))
    found = read_live(output, "run-1")
    assert found is not None and found["run_id"] == "run-1" and found["age_s"] >= 0
    assert (found["rows_ok"], found["overview"]["rows_per_s"], found["engines"]) == (10, 5.0, ENGINES)
    assert found["bottleneck"].startswith("Engines were busy 95% of the time")


def test_live_file_offered_often_is_written_now_and_then(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[dict[str, Any]] = []
    monkeypatch.setattr(output, "put_json", lambda name, value: put.append(value))
    live = LiveFile(output, "run-1", fine, every_s=3600)
    for number in range(5):
        live.offer(Progress(rows_ok=number))
    live.close(Progress(rows_ok=5))
    assert [p["rows_ok"] for p in put] in ([0, 5], [5])  # the first may give way to the last before it is written


def test_live_file_that_cannot_be_written_troubles_nobody(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, value: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(output, "put_json", refuse)
    live = LiveFile(output, "run-1", fine)
    live.offer(Progress())
    live.close(Progress())
    assert read_live(output, "run-1") is None


def test_live_file_on_a_store_that_hangs_delays_the_end_for_a_moment_only(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(output, "put_json", lambda name, value: released.wait(60))
    monkeypatch.setattr("pipeline.live.CLOSE_S", 0.01)
    live = LiveFile(output, "run-1", fine)
    live.offer(Progress())
    live.close(Progress())
    assert not released.is_set()
    released.set()


def test_live_file_of_a_session_that_lost_its_output_is_not_written(output: Output) -> None:
    def lost() -> None:
        raise FencedError("another session")

    LiveFile(output, "run-1", lost).close(Progress())
    assert not output.has(NAME)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"run_id": "run-1"}', '{"run_id": "run-1", "written_at": "?"}'])
def test_read_live_of_what_no_session_wrote_is_none(output: Output, content: str | None) -> None:
    if content is not None:
        output.store.put(output.at(NAME), content.encode())
    assert read_live(output, "run-1") is None


def test_read_live_of_another_run_is_none(output: Output) -> None:
    LiveFile(output, "run-1", fine).close(Progress())
    assert json.loads(output.store.read(output.at(NAME)))["run_id"] == "run-1"
    assert read_live(output, "run-2") is None
    assert issubclass(FencedError, HerdError)
