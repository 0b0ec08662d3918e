import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from pipeline.engine.base import EngineInfo
from pipeline.engine.loop import EngineLoop, Work
from pipeline.errors import RowError, Stage
from pipeline.host.journal import Journal, Phase
from pipeline.request import Completion, Failure, Prepared, Request

WAIT_S = 20  # only ever reached by a test that fails


class FakeEngine:
    """Answers everything it was given at its next step. `add` and `step` can be made to raise."""

    def __init__(self, max_num_seqs: int = 4) -> None:
        self.info = EngineInfo("fake", max_num_seqs, {})
        self.tokens = 0
        self.admitted: list[str] = []
        self.threads: set[str] = set()
        self.dies_after: int | None = None
        self.held = threading.Event()
        self.held.set()
        self._under_way: dict[int, str] = {}

    def prepare(self, request: Request) -> Prepared:
        raise NotImplementedError

    def add(self, key: int, prepared: Prepared) -> None:
        self.threads.add(threading.current_thread().name)
        if prepared.request_sha256 == "refused":
            raise RowError(Stage.ENGINE, "engine_refused", "not this one")
        if prepared.request_sha256 == "fatal":
            raise RuntimeError("the engine fell over")
        assert key not in self._under_way
        self.admitted.append(prepared.request_sha256)
        self._under_way[key] = prepared.request_sha256

    def step(self) -> list[tuple[int, Completion | Failure]]:
        self.threads.add(threading.current_thread().name)
        assert self.held.wait(WAIT_S)
        if self.dies_after is not None and len(self.admitted) >= self.dies_after:
            raise RuntimeError("the engine died")
        batch = list(self._under_way.items())[: self.info.max_num_seqs]
        for key, _ in batch:
            del self._under_way[key]
        self.tokens += len(batch)
        return [(key, Completion(name, [1], "stop", 1)) for key, name in batch]

    def has_work(self) -> bool:
        return bool(self._under_way)

    def texts(self, completions: Sequence[Completion]) -> list[str]:
        return [c.text or "" for c in completions]


class Harness:
    """A loop over a fake engine and a real journal, with what it did. `slot` is where its works are marked."""

    slot = 1

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.journal = Journal.create(2, 100)
        self.results: dict[int, list[Completion | Failure]] = {}
        self.deaths: list[BaseException] = []
        self._changed = threading.Condition()
        self.loop = EngineLoop(engine, self.journal, self._on_done, self._on_death)
        self.thread = threading.Thread(target=self.loop.run, name="stepping", daemon=True)
        self.thread.start()

    def _on_death(self, death: BaseException) -> None:
        with self._changed:
            self.deaths.append(death)
            self._changed.notify_all()

    def _on_done(self, results: list[tuple[Work, Completion | Failure]]) -> None:
        with self._changed:
            for work, result in results:
                self.results.setdefault(work.asked, []).append(result)
            self._changed.notify_all()

    def works(self, *names: str, first: int = 0) -> list[Work]:
        return [Work(self.slot, n, Prepared([1], name, None), n) for n, name in enumerate(names, first)]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S)

    def marked(self) -> dict[int, Phase]:
        """The phase of each row that the journal holds to be worked on."""
        return {m.index: m.phase for m in self.journal.active() if m.slot == self.slot}


Start = Callable[[FakeEngine], Harness]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a loop over an engine; it is closed, and its journal removed, when the test is over."""
    started: list[Harness] = []

    def begin(engine: FakeEngine) -> Harness:
        started.append(Harness(engine))
        return started[-1]

    yield begin
    for harness in started:
        harness.engine.held.set()
        harness.loop.close()
        harness.journal.remove()


@pytest.fixture
def harness(start: Start) -> Harness:
    return start(FakeEngine())


def test_loop_answers_every_work_once(harness: Harness) -> None:
    names = [f"w{n}" for n in range(100)]
    harness.loop.announce(100)
    for start in range(0, 100, 10):
        harness.loop.submit(harness.works(*names[start : start + 10], first=start), settled=10)
    harness.wait(lambda: len(harness.results) == 100)
    harness.loop.close()
    assert {n: [r.text for r in rs if isinstance(r, Completion)] for n, rs in harness.results.items()} == {
        n: [name] for n, name in enumerate(names)
    }
    assert harness.engine.admitted == names
    assert harness.deaths == []
    assert harness.loop.window.rows == 100


def test_loop_touches_the_engine_from_one_thread_only(harness: Harness) -> None:
    harness.loop.announce(4)
    harness.loop.submit(harness.works("a", "b", "c", "d"), settled=4)
    harness.wait(lambda: len(harness.results) == 4)
    harness.loop.close()
    assert harness.engine.threads == {"stepping"}


def test_loop_refused_request_fails_its_row_only(harness: Harness) -> None:
    harness.loop.announce(3)
    harness.loop.submit(harness.works("a", "refused", "b"), settled=3)
    harness.wait(lambda: len(harness.results) == 3)
    harness.loop.close()
    (failure,) = harness.results[1]
    assert failure == Failure(Stage.ENGINE, "engine_refused", "not this one")
    assert all(isinstance(harness.results[n][0], Completion) for n in (0, 2))
    assert harness.deaths == []


def test_loop_only_refused_requests_leave_the_loop_alive(harness: Harness) -> None:
    harness.loop.announce(2)
    harness.loop.submit(harness.works("refused"), settled=1)
    harness.loop.submit(harness.works("a", first=1), settled=1)
    harness.wait(lambda: len(harness.results) == 2)
    harness.loop.close()
    assert isinstance(harness.results[0][0], Failure) and isinstance(harness.results[1][0], Completion)


def test_loop_engine_death_is_reported_once_and_nothing_is_answered(start: Start) -> None:
    engine = FakeEngine()
    engine.dies_after = 2
    harness = start(engine)
    harness.loop.announce(2)
    harness.loop.submit(harness.works("a", "b"), settled=2)
    harness.wait(lambda: bool(harness.deaths))
    harness.loop.close()
    assert [str(d) for d in harness.deaths] == ["the engine died"]
    assert harness.results == {}
    assert harness.marked() == {0: Phase.ENGINE, 1: Phase.ENGINE}


def test_loop_death_while_admitting_is_reported(harness: Harness) -> None:
    harness.loop.announce(2)
    harness.loop.submit(harness.works("a", "fatal"), settled=2)
    harness.wait(lambda: bool(harness.deaths))
    harness.loop.close()
    assert [str(d) for d in harness.deaths] == ["the engine fell over"]
    assert harness.marked() == {0: Phase.ENGINE, 1: Phase.ADMIT}


def test_loop_waits_for_a_batch_while_more_is_on_its_way(start: Start) -> None:
    """Of a window of 8, half is a batch: three requests wait, the fourth lets them all in."""
    harness = start(FakeEngine(max_num_seqs=8))
    harness.loop.announce(10)
    harness.loop.submit(harness.works("a", "b", "c"), settled=3)
    assert not harness.loop._is_admittable()
    assert harness.engine.admitted == []
    harness.loop.submit(harness.works("d", first=3), settled=1)
    harness.wait(lambda: len(harness.results) == 4)
    harness.loop.close()
    assert harness.engine.admitted == ["a", "b", "c", "d"]


def test_loop_admits_less_than_a_batch_once_all_announced_is_settled(start: Start) -> None:
    harness = start(FakeEngine(max_num_seqs=8))
    harness.loop.announce(3)
    harness.loop.submit(harness.works("a"), settled=1)
    assert not harness.loop._is_admittable()
    assert harness.engine.admitted == []
    harness.loop.submit([], settled=2)  # two rows failed on their way
    harness.wait(lambda: len(harness.results) == 1)
    harness.loop.close()
    assert harness.engine.admitted == ["a"]


def test_loop_keeps_no_more_than_twice_the_window_in_the_engine(start: Start) -> None:
    engine = FakeEngine(max_num_seqs=4)
    engine.held.clear()
    harness = start(engine)
    stepping = threading.Event()
    wait = engine.held.wait

    def noted(timeout: float | None = None) -> bool:
        stepping.set()
        return wait(timeout)

    engine.held.wait = noted  # type: ignore[method-assign]
    harness.loop.announce(50)
    harness.loop.submit(harness.works(*[f"w{n}" for n in range(50)]), settled=50)
    assert stepping.wait(WAIT_S)
    assert len(engine.admitted) == 8
    engine.held.set()
    harness.wait(lambda: len(harness.results) == 50)
    harness.loop.close()


def test_loop_close_ends_the_thread_with_or_without_work(harness: Harness) -> None:
    harness.loop.close()
    assert not harness.thread.is_alive()
    assert harness.deaths == []


def test_loop_window_is_empty_before_the_first_request(harness: Harness) -> None:
    assert (harness.loop.window.seconds, harness.loop.window.rows) == (0.0, 0)
    harness.loop.close()


def test_loop_marks_rows_in_the_order_of_their_admission(start: Start) -> None:
    engine = FakeEngine(max_num_seqs=8)
    engine.dies_after = 4
    harness = start(engine)
    harness.loop.announce(4)
    harness.loop.submit(harness.works("a", "b", "c", "d"), settled=4)
    harness.wait(lambda: bool(harness.deaths))
    assert [m.index for m in harness.journal.active()] == [3, 2, 1, 0]


def test_loop_tells_the_journal_of_the_tokens_made(harness: Harness) -> None:
    harness.loop.announce(6)
    harness.loop.submit(harness.works(*"abcdef"), settled=6)
    harness.wait(lambda: len(harness.results) == 6)
    assert harness.journal.progress[1] == 6
