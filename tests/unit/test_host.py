"""Engine hosts with real processes of the echo engine. Each life of an engine costs a start, so tests are few and rich."""

import contextlib
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.accounts import Answered
from pipeline.columns import resolve
from pipeline.engine.base import EngineInfo
from pipeline.engine.echo import EchoEngine
from pipeline.errors import EngineStartError, HerdError
from pipeline.host.host import EngineHost, Events
from pipeline.host.process import EngineJob
from pipeline.model import ModelRef

from .helpers import job

WAIT_S = 120  # only ever reached by a test that fails
TEXTS = pa.schema([("text", pa.string())])
KILLED = "its process was killed by SIGKILL"


def engine_job(**changes: Any) -> EngineJob:
    config = job(**changes)
    return EngineJob(config, resolve(config, TEXTS, where="a test"), ModelRef("echo", "echo"))


def shard(texts: Sequence[str | None]) -> pa.Table:
    return pa.table({"text": list(texts)}, TEXTS)


class Watched:
    """A host, with what it told. `on_figures` is called on the host's thread."""

    def __init__(self, *, on_figures: Callable[["Watched"], None] = lambda watched: None, **changes: Any) -> None:
        self.deaths: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.infos: list[EngineInfo] = []
        self.told: list[dict[str, float]] = []
        self.left: list[tuple[int, float]] = []
        """For each death, how many rows were missing then, and how many had been answered."""

        def died(error_type: str, message: str) -> None:
            self.deaths.append((error_type, message))
            missing = sum(len(b.missing) for b in self.host._batches.values())
            self.left.append((missing, self.told[-1]["rows"] if self.told else 0))

        def figures(told: dict[str, float]) -> None:
            self.told.append(told)
            on_figures(self)

        events = Events(
            ready=lambda info, seconds: self.infos.append(info),
            figures=figures,
            died=died,
            noted=self.notes.append,
        )
        self.host = EngineHost(engine_job(**changes), max_rows=100, events=events)

    def answer(self, *shards: Sequence[str | None]) -> list[Answered]:
        """The answers to these shards, asked at the same time."""
        with ThreadPoolExecutor(len(shards)) as pool:
            futures = [pool.submit(self.host.answer, shard(texts)) for texts in shards]
            return [future.result(WAIT_S) for future in futures]

    def faults(self, *shards: Sequence[str | None]) -> list[BaseException | None]:
        """The exceptions that end these shards, asked at the same time; None for one that is answered."""
        with ThreadPoolExecutor(len(shards)) as pool:
            futures = [pool.submit(self.host.answer, shard(texts)) for texts in shards]
            return [future.exception(WAIT_S) for future in futures]

    @property
    def pids(self) -> list[int]:
        return [info.facts["pid"] for info in self.infos]


Start = Callable[..., Watched]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts hosts. When the test is over they are closed, and must have left neither processes nor files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started: list[Watched] = []

    def begin(**changes: Any) -> Watched:
        started.append(Watched(**changes))
        return started[-1]

    yield begin
    for watched in started:
        watched.host.close()
        until = time.monotonic() + WAIT_S
        while any(is_alive(pid) for pid in watched.pids) and time.monotonic() < until:
            time.sleep(0.01)  # a killed process takes a moment to end, and nobody but the engine itself is waited for
        assert [pid for pid in watched.pids if is_alive(pid)] == []
    assert list(tmp_path.iterdir()) == []


def is_alive(pid: int) -> bool:
    """Whether any process of the group is about, other than as a name that nobody has asked after yet."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == pid and state not in "ZX":
                return True
    return False


def words(name: str, count: int = 40, **odd: str) -> list[str]:
    """Texts of a shard; `odd` gives others by index, as `_7="text"`."""
    return [odd.get(f"_{n}", f"{name} {n}") for n in range(count)]


def said(answered: Answered) -> list[str | None]:
    return answered.pieces["response"].to_pylist()


def failed(answered: Answered) -> dict[int, str]:
    """Stage and error type of the quarantined rows, by index."""
    rows = answered.pieces.to_pylist()
    return {n: f"{row['stage']}/{row['error_type']}" for n, row in enumerate(rows) if row["stage"]}


def check_tries(answered: Answered, deaths: Sequence[tuple[str, str]]) -> None:
    """That each row was tried once more than its history tells of, in order, and that the deaths are those told."""
    past = Counter(index for index, *_ in answered.history)
    assert answered.tries == [past[n] + 1 for n in range(answered.pieces.num_rows)]
    for index in past:
        assert [entry[1] for entry in answered.history if entry[0] == index] == list(range(1, past[index] + 1))
    assert {entry[2] for entry in answered.history} <= {error_type for error_type, _ in deaths}


def test_host_answers_all_rows_of_several_shards_in_order(start: Start) -> None:
    watched = start(pool={"shards_in_flight": 3}, engine={"kind": "echo", "echo": {"fail_on": "REFUSED"}})
    shards = [words(name, count) for name, count in (("a", 100), ("b", 1), ("c", 33))]
    odd: list[str | None] = ["d 0", None, "d 2", "REFUSED", "", "d 5"]
    a, b, c, d = watched.answer(*shards, odd)
    assert [said(answered) for answered in (a, b, c)] == shards
    assert said(d) == ["d 0", None, "d 2", None, None, "d 5"]
    assert failed(d) == {1: "render/null_value", 3: "engine/echo_fail_on", 4: "render/empty_prompt"}
    for answered in (a, b, c, d):
        assert answered.tries == [1] * answered.pieces.num_rows
        assert answered.history == []
        is_ok = [text is not None for text in said(answered)]
        assert [digest is not None for digest in answered.pieces["sampling_sha256"].to_pylist()] == [
            ok or (n == 3 and answered is d) for n, ok in enumerate(is_ok)
        ]
    assert watched.answer(words("e", 2))[0].pieces["response"].to_pylist() == ["e 0", "e 1"]
    assert watched.deaths == watched.notes == []
    assert watched.host.figures()["rows"] == 100 + 1 + 33 + 3 + 2
    (info,) = watched.infos
    assert info == watched.host.info and is_alive(info.facts["pid"])


def test_host_finds_each_row_that_kills_and_answers_all_others(start: Start) -> None:
    """Two in one shard and one in another that is asked at the same time."""
    watched = start(engine={"kind": "echo", "echo": {"die_on": "DEADLY"}})
    shards = [words("a", 60, _20="DEADLY 1", _41="DEADLY 2"), words("b", 60, _30="DEADLY 3"), words("c", 5)]
    a, b, c = watched.answer(*shards)
    assert [failed(answered) for answered in (a, b, c)] == [
        {20: "engine/engine_death", 41: "engine/engine_death"},
        {30: "engine/engine_death"},
        {},
    ]
    for answered, texts in zip((a, b, c), shards, strict=True):
        assert said(answered) == [None if "DEADLY" in text else text for text in texts]
        check_tries(answered, watched.deaths)
    for answered, index in ((a, 20), (a, 41), (b, 30)):
        deaths = answered.tries[index]
        assert 2 <= deaths <= len(watched.deaths) <= 9
        assert answered.pieces["message"][index].as_py() == (
            f"the engine died {deaths} times with this row, the last time with it alone: {KILLED}"
        )
    assert {error_type for error_type, _ in watched.deaths} == {"engine_death"}
    quarantined = f"a row is quarantined as engine_death: {KILLED}"
    assert watched.notes.count(quarantined) == 3
    assert set(watched.notes) <= {quarantined, "every suspect of the engine's deaths is cleared or quarantined"}
    assert len(watched.infos) == len(watched.deaths) + 1
    assert [pid for pid in watched.pids[:-1] if is_alive(pid)] == []


def test_host_replaces_an_engine_whose_rendering_process_is_killed(start: Start) -> None:
    watched = start(engine={"kind": "echo"})
    assert said(watched.answer(["a"])[0]) == ["a"]
    (pid,) = watched.pids
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    assert said(watched.answer(words("b"))[0]) == words("b")
    ((error_type, message),) = watched.deaths
    assert error_type == "engine_death" and "a rendering process ended with SIGKILL" in message


def test_host_has_a_row_that_hangs_quarantined_after_two_stalls(start: Start) -> None:
    watched = start(limits={"stall_s": 2.0}, engine={"kind": "echo", "echo": {"hang_on": "ENDLESS"}})
    watched.answer(words("warm up", 1))
    texts = words("a", 60, _20="ENDLESS")
    a, b = watched.answer(texts, words("b"))
    assert failed(a) == {20: "engine/engine_stall"}
    assert failed(b) == {}
    assert said(a) == [None if text == "ENDLESS" else text for text in texts]
    stall = "no row and no token got on for 2 s; its process was killed"
    assert watched.deaths == [("engine_stall", f"{stall}; 1 rows were being worked on")] * 2
    assert a.pieces["message"][20].as_py() == (
        f"the engine hung 2 times with this row, the last time with it alone: {stall}"
    )
    assert (a.tries[20], [entry[:3] for entry in a.history]) == (2, [(20, 1, "engine_stall")])
    check_tries(b, [])


def test_host_start_that_takes_longer_than_a_stall_is_none(start: Start) -> None:
    """After a death there are rows in hand while the next engine starts, and none of them can get on."""
    watched = start(limits={"stall_s": 2.0}, engine={"kind": "echo", "echo": {"die_on": "DEADLY"}})
    (a,) = watched.answer(words("a", 20, _10="DEADLY"))
    assert failed(a) == {10: "engine/engine_death"}
    assert {error_type for error_type, _ in watched.deaths} == {"engine_death"}


def test_host_death_that_nobody_repeats_costs_no_row_and_no_answer(start: Start) -> None:
    is_armed = threading.Event()

    def kill_once(watched: Watched) -> None:
        if is_armed.is_set():
            is_armed.clear()
            os.killpg(watched.pids[0], signal.SIGKILL)

    echo = {"latency_s": 0.5}  # 16 rows at a time end together, so that rows are in hand when the first are handed back
    watched = start(on_figures=kill_once, engine={"kind": "echo", "max_num_seqs": 8, "echo": echo})
    watched.answer(words("warm up", 1))
    is_armed.set()
    (a,) = watched.answer(words("a", 64))
    assert said(a) == words("a", 64)
    assert 1 <= len(a.history) < 64
    assert watched.deaths == [("engine_death", f"{KILLED}; {len(a.history)} rows were being worked on")]
    assert all(entry[1:4] == (1, "engine_death", KILLED) for entry in a.history)
    check_tries(a, watched.deaths)
    assert watched.notes == ["every suspect of the engine's deaths is cleared or quarantined"]
    ((missing, answered),) = watched.left
    assert 0 < missing < 64
    assert watched.host.figures()["rows"] - answered == missing, "what was answered before is not asked again"
    assert len(watched.infos) == 2


def test_host_of_an_engine_that_only_dies_gives_up(start: Start) -> None:
    watched = start(limits={"max_engine_restarts": 3}, engine={"kind": "echo", "echo": {"die_on": "."}})
    faults = watched.faults(words("a"), words("b"))
    for fault in faults:
        assert isinstance(fault, EngineStartError)
        assert str(fault).startswith(
            f"The engine died 3 times in a row without an answer in between, last: {KILLED}. Look for the machine's"
        )
    assert len(watched.deaths) == 3
    with pytest.raises(EngineStartError, match="The engine died 3 times in a row"):
        watched.host.answer(shard(["a"]))


def test_host_convicts_no_row_while_nothing_shows_that_the_engine_works(start: Start) -> None:
    """On a machine that is broken each row alone kills the engine, which says nothing of the row."""
    watched = start(limits={"max_engine_restarts": 3}, engine={"kind": "echo", "echo": {"die_on": "."}})
    faults = watched.faults(["a"], ["b"])
    assert [type(fault) for fault in faults] == [EngineStartError, EngineStartError]


def test_host_finds_a_row_whose_answer_cannot_be_read(start: Start) -> None:
    """Reading an answer is work on a row too: here a pattern that takes the parser for ever."""
    schema = {"enum": ["fine", "x" * 40], "pattern": "^((x+x+)+y|fine)$"}
    answer = {"json_schema": schema}
    engine = EchoEngine(job(answer=answer))
    texts = [text for text in words("a") if "fine" in engine._reply(text)]
    endless = next(text for text in words("b") if "fine" not in engine._reply(text))
    texts[5] = endless
    watched = start(answer=answer, limits={"stall_s": 2.0, "max_engine_restarts": 3})
    (a,) = watched.answer(texts)
    assert failed(a) == {5: "engine/engine_stall"}
    assert a.pieces["answer"].to_pylist() == ["fine" if n != 5 else None for n in range(len(texts))]


def test_host_of_an_engine_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(EngineStartError, match="The echo engine cannot make text for a regex"):
        EngineHost(engine_job(answer={"regex": "a+"}), max_rows=10)
    assert list(tmp_path.iterdir()) == []


def test_host_closed_in_the_midst_of_rows_ends_their_callers(start: Start) -> None:
    watched = start(engine={"kind": "echo", "echo": {"hang_on": "ENDLESS"}}, pool={"shards_in_flight": 2})
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(watched.host.answer, shard(["ENDLESS"]))
        assert said(watched.answer(["a"])[0]) == ["a"]
        watched.host.close()
        assert str(waiting.exception(WAIT_S)) == "The engine was closed."
    with pytest.raises(HerdError, match="The engine was closed"):
        watched.host.answer(shard(["a"]))


def test_host_that_is_closed_while_a_shard_arrives_ends_its_caller(start: Start) -> None:
    watched = start()
    host = watched.host

    class Late(queue.SimpleQueue):  # type: ignore[type-arg]
        """Lets the host come to its end, if it can, before anything arrives."""

        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            host._closed = True
            host._ring()
            host._thread.join(timeout=2)
            super().put(item)

    host._arrivals = Late()
    ended = threading.Event()

    def ask() -> None:
        with pytest.raises(HerdError, match="The engine was closed"):
            host.answer(shard(["a"]))
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    assert ended.wait(10)


SCRIPT = """
import sys
from tests.unit.test_host import engine_job, shard
from pipeline.host.host import EngineHost
host = EngineHost(engine_job(engine={"kind": "echo", "echo": {"hang_on": "ENDLESS"}}), max_rows=10)
print(host.info.facts["pid"], flush=True)
host.answer(shard(["a", "ENDLESS"]))
"""


def test_engine_does_not_outlive_the_process_of_its_host(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *(p for p in sys.path if p)])
    environment = {**os.environ, "PYTHONPATH": paths, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True) as host:
        try:
            assert host.stdout is not None
            pid = int(host.stdout.readline())
            engine = os.pidfd_open(pid)
            assert select.select([engine], [], [], 0) == ([], [], [])
        finally:
            host.kill()
    assert select.select([engine], [], [], WAIT_S)[0] == [engine]
    os.close(engine)
