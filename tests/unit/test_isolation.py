"""The search for guilty rows, driven as `pipeline.host.host` drives it, over an engine that is a few lines long."""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.host.isolation import Isolation, Row

seeded = settings(derandomize=True, max_examples=300)


class Kind(Enum):
    INNOCENT = "innocent"
    KILLS_ADMITTED = "kills when it is admitted"
    KILLS_RENDERED = "kills while it is rendered"
    KILLS_LATE = "kills when others were admitted after it, or else some time after its admission"
    HANGS = "never ends"


@dataclass(frozen=True)
class Spec:
    """One row: how long it takes, and what it does wrong. Times are in ticks."""

    kind: Kind = Kind.INNOCENT
    lasts: int = 1
    renders: int = 0
    """Ticks before it is ready to be admitted."""
    after_rows: int = 10**9
    """A late killer kills as soon as so many rows were admitted after it; by itself it does so after `lasts`."""

    @property
    def is_poison(self) -> bool:
        return self.kind is not Kind.INNOCENT


@dataclass
class Trace:
    """What happened to the rows."""

    answered: list[int] = field(default_factory=list)
    convicted: list[int] = field(default_factory=list)
    deaths: list[list[int]] = field(default_factory=list)
    """The suspects of each death."""
    transients: int = 0
    most_at_once: list[int] = field(default_factory=list)
    """For each death, how many suspects ran at the same time at most in the search after it."""
    ticks: int = 0

    def deaths_with(self, row: int) -> int:
        return sum(row in suspects for suspects in self.deaths)


class Engine:
    """One life of an engine: `width` rows run at a time, in the order in which they were rendered."""

    def __init__(self, rows: Sequence[Spec], width: int) -> None:
        self._rows, self._width = rows, width
        self._rendering: dict[int, int] = {}
        self._prepared: deque[int] = deque()
        self._running: dict[int, int] = {}
        self._admitted_after: Counter[int] = Counter()
        self._marks: dict[int, None] = {}
        self.is_dead = False

    @property
    def is_idle(self) -> bool:
        return not (self._rendering or self._prepared or self._running)

    @property
    def suspects(self) -> list[int]:
        """What is being worked on, newest first."""
        return list(self._marks)[::-1]

    def _mark(self, row: int, *, is_active: bool) -> None:
        self._marks.pop(row, None)
        if is_active:
            self._marks[row] = None

    def ask(self, rows: Sequence[int]) -> None:
        for row in rows:
            self._rendering[row] = self._rows[row].renders
            self._mark(row, is_active=True)

    def tick(self) -> list[int]:
        """The rows that end in this tick; before it is over the engine may be dead."""
        for row in list(self._rendering):
            if self._rendering[row] == 0:
                if self._rows[row].kind is Kind.KILLS_RENDERED:
                    self.is_dead = True
                    return []
                del self._rendering[row]
                self._mark(row, is_active=False)
                self._prepared.append(row)
            else:
                self._rendering[row] -= 1
        while self._prepared and len(self._running) < self._width:
            row = self._prepared.popleft()
            self._mark(row, is_active=True)
            if self._rows[row].kind is Kind.KILLS_ADMITTED:
                self.is_dead = True
                return []
            for earlier in self._running:
                self._admitted_after[earlier] += 1
            self._running[row] = self._rows[row].lasts
        ended = []
        for row in list(self._running):
            spec = self._rows[row]
            if spec.kind is Kind.HANGS:
                continue
            self._running[row] -= 1
            if spec.kind is Kind.KILLS_LATE and (
                self._running[row] <= 0 or self._admitted_after[row] >= spec.after_rows
            ):
                self.is_dead = True
                return ended
            if self._running[row] <= 0:
                del self._running[row]
                self._mark(row, is_active=False)
                ended.append(row)
        return ended


def search(
    rows: Sequence[Spec],
    *,
    width: int = 8,
    restart: float = 4.0,
    stall: int = 15,
    transients: Sequence[int] = (),
    first_death: Sequence[int] | None = None,
    at_most: int = 20_000,
) -> Trace:
    """Has all rows answered or convicted, as the host does. `transients` are ticks at which a healthy engine dies, but
    no row is given a second such death, nor one alone while it is already suspect: from that no search could tell it
    from a poison row. With `first_death` the search begins with these suspects, and no row was asked yet."""
    trace, isolation, number = Trace(), Isolation(), 1
    missing = set(range(len(rows)))
    struck: set[int] = set()
    planned = set(transients)

    def bury(suspects: Sequence[int]) -> None:
        trace.deaths.append(list(suspects))
        trace.most_at_once.append(0)
        convicted = isolation.died([(number, row) for row in suspects], restart)
        if convicted is not None:
            trace.convicted.append(convicted[1])
            missing.discard(convicted[1])

    if first_death is not None:
        bury(first_death)
    engine, is_sent, since, running = Engine(rows, width), False, 0, set[int]()
    for now in range(at_most):
        trace.ticks = now
        if not missing:
            assert not isolation.is_active
            return trace
        if isolation.is_active:
            while (row := isolation.next(float(now))) is not None:
                assert row[1] in missing and row[1] not in running
                assert any(row[1] in suspects for suspects in trace.deaths), "only suspects are asked during a search"
                engine.ask([row[1]])
                running.add(row[1])
                trace.most_at_once[-1] = max(trace.most_at_once[-1], len(running))
        elif not is_sent:
            is_sent = True
            engine.ask(sorted(missing))
        ended = engine.tick()
        suspects = engine.suspects
        if ended:
            since = now
            trace.answered.extend(ended)
            missing.difference_update(ended)
            running.difference_update(ended)
            isolation.ended([(number, row) for row in ended])
        is_transient = (
            now in planned
            and not engine.is_dead
            and not struck & set(suspects)
            and not (len(suspects) == 1 and isolation.deaths[(number, suspects[0])])
        )
        if is_transient:
            struck.update(suspects)
            trace.transients += 1
        if engine.is_dead or is_transient or (not engine.is_idle and now - since >= stall):
            bury(suspects)
            engine, is_sent, since, running = Engine(rows, width), False, now, set()
        elif engine.is_idle:
            since = now
    raise AssertionError(f"the search has not ended: {missing} are missing")


innocents = st.builds(Spec, lasts=st.integers(1, 12), renders=st.integers(0, 2))
poison = st.builds(
    Spec,
    kind=st.sampled_from([k for k in Kind if k is not Kind.INNOCENT]),
    lasts=st.integers(1, 12),
    renders=st.integers(0, 2),
    after_rows=st.integers(1, 6),
)
restarts = st.sampled_from([0.0, 1.0, 10.0, 100.0])


@st.composite
def mixtures(draw: st.DrawFn) -> list[Spec]:
    """Up to 40 rows, up to 4 of them poison, anywhere."""
    rows = draw(st.lists(innocents, min_size=0, max_size=36))
    for guilty in draw(st.lists(poison, min_size=0, max_size=4)):
        rows.insert(draw(st.integers(0, len(rows))), guilty)
    return rows


def is_settled(trace: Trace, rows: Sequence[Spec]) -> bool:
    """Whether exactly the poison rows were convicted and all others answered, each once."""
    guilty = [row for row, spec in enumerate(rows) if spec.is_poison]
    innocent = [row for row, spec in enumerate(rows) if not spec.is_poison]
    return sorted(trace.convicted) == guilty and sorted(trace.answered) == innocent


@seeded
@given(rows=mixtures(), width=st.integers(1, 16), restart=restarts)
def test_every_poison_row_is_convicted_and_no_other(rows: list[Spec], width: int, restart: float) -> None:
    trace = search(rows, width=width, restart=restart)
    assert is_settled(trace, rows)


@seeded
@given(
    rows=st.lists(innocents, min_size=1, max_size=40),
    width=st.integers(1, 16),
    restart=restarts,
    transients=st.lists(st.integers(0, 60), max_size=8),
)
def test_deaths_that_nobody_repeats_cost_no_row(
    rows: list[Spec], width: int, restart: float, transients: list[int]
) -> None:
    trace = search(rows, width=width, restart=restart, transients=transients)
    assert trace.convicted == []
    assert sorted(trace.answered) == list(range(len(rows)))


@seeded
@given(rows=mixtures(), width=st.integers(1, 16), restart=restarts, transients=st.lists(st.integers(0, 60), max_size=4))
def test_transient_deaths_during_a_search_convict_no_innocent(
    rows: list[Spec], width: int, restart: float, transients: list[int]
) -> None:
    trace = search(rows, width=width, restart=restart, transients=transients)
    assert is_settled(trace, rows)


@seeded
@given(rows=mixtures(), width=st.integers(1, 16), restart=restarts, stall=st.integers(13, 60))
def test_number_of_deaths_grows_with_the_poison_and_not_with_the_rows(
    rows: list[Spec], width: int, restart: float, stall: int
) -> None:
    trace = search(rows, width=width, restart=restart, stall=stall)
    guilty = sum(spec.is_poison for spec in rows)
    assert len(trace.deaths) <= guilty * (3 + math.log2(max(1, len(rows))))


@seeded
@given(data=st.data(), count=st.integers(1, 64), lasts=st.integers(1, 50), restart=st.floats(0, 100))
def test_admission_killer_costs_three_deaths_at_most(
    data: st.DataObject, count: int, lasts: int, restart: float
) -> None:
    guilty = data.draw(st.integers(0, count - 1))
    order = data.draw(st.permutations(range(count)))
    rows = [Spec(Kind.KILLS_ADMITTED) if row == guilty else Spec(lasts=lasts) for row in range(count)]
    trace = search(rows, width=count, restart=restart, stall=1000, first_death=order)
    assert is_settled(trace, rows)
    assert len(trace.deaths) <= 3


@seeded
@given(count=st.integers(1, 64), lasts=st.integers(1, 50), restart=st.floats(0, 100))
def test_admission_killer_that_is_the_newest_costs_two_deaths(count: int, lasts: int, restart: float) -> None:
    rows = [*(Spec(lasts=lasts) for _ in range(count - 1)), Spec(Kind.KILLS_ADMITTED)]
    trace = search(rows, width=count, restart=restart, stall=1000, first_death=range(count)[::-1])
    assert is_settled(trace, rows)
    assert len(trace.deaths) == 2


@seeded
@given(data=st.data(), count=st.integers(1, 64))
def test_admission_killer_among_short_answers_costs_two_deaths(data: st.DataObject, count: int) -> None:
    """Answers that take less than the pause between two suspects are in fact asked alone."""
    guilty = data.draw(st.integers(0, count - 1))
    rows = [Spec(Kind.KILLS_ADMITTED) if row == guilty else Spec() for row in range(count)]
    trace = search(rows, width=count, restart=2.0 * count, first_death=range(count))
    assert is_settled(trace, rows)
    assert len(trace.deaths) == 2


@seeded
@given(data=st.data(), count=st.integers(1, 64), restart=restarts)
def test_late_killer_is_cornered_by_halves(data: st.DataObject, count: int, restart: float) -> None:
    guilty = data.draw(st.integers(0, count - 1))
    order = data.draw(st.permutations(range(count)))
    late = Spec(Kind.KILLS_LATE, lasts=data.draw(st.integers(1, 60)), after_rows=data.draw(st.integers(1, 80)))
    lasts = data.draw(st.lists(st.integers(1, 60), min_size=count, max_size=count))
    rows = [late if row == guilty else Spec(lasts=lasts[row]) for row in range(count)]
    trace = search(rows, width=count, restart=restart, stall=1000, first_death=order)
    assert is_settled(trace, rows)
    assert len(trace.deaths) <= 3 + math.log2(count)


@seeded
@given(data=st.data(), count=st.integers(2, 32), restart=restarts)
def test_several_late_killers_cost_as_much_each_as_one(data: st.DataObject, count: int, restart: float) -> None:
    guilty = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=4))
    kill = st.builds(Spec, st.just(Kind.KILLS_LATE), st.integers(1, 40), st.just(0), st.integers(1, 40))
    rows = [data.draw(kill) if row in guilty else Spec(lasts=20) for row in range(count)]
    trace = search(rows, width=count, restart=restart, stall=1000, first_death=range(count))
    assert is_settled(trace, rows)
    assert len(trace.deaths) <= len(guilty) * (3 + math.log2(count))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_rows_that_hang_are_convicted_after_the_others_were_answered(count: int) -> None:
    rows = [*(Spec(lasts=5) for _ in range(count)), Spec(Kind.HANGS), Spec(Kind.HANGS)]
    trace = search(rows, width=8, restart=4.0)
    assert is_settled(trace, rows)


def test_search_asks_half_of_the_suspects_at_a_time() -> None:
    rows = [Spec(lasts=100) for _ in range(40)]
    trace = search(rows, width=40, restart=0.0, stall=1000, first_death=range(40))
    assert trace.most_at_once == [20]


@pytest.mark.parametrize("restart", [0.0, 10.0, 40.0])
def test_search_that_finds_nobody_takes_about_one_restart_beyond_the_rows_own_time(restart: float) -> None:
    lasts = 50
    rows = [Spec(lasts=lasts) for _ in range(40)]
    trace = search(rows, width=40, restart=restart, stall=1000, first_death=range(40))
    assert trace.convicted == []
    # the first alone, then two waves of at most half of them each
    assert trace.ticks <= 4 * lasts + restart + len(rows)


def suspects(*rows: int) -> list[Row]:
    return [(1, row) for row in rows]


def test_nothing_is_suspect_at_first() -> None:
    isolation = Isolation()
    assert not isolation.is_active
    assert isolation.next(0.0) is None


def test_death_makes_suspects_and_convicts_nobody() -> None:
    isolation = Isolation()
    assert isolation.died(suspects(5, 2), 1.0) is None
    assert isolation.is_active
    assert (1, 5) in isolation and (1, 2) in isolation and (1, 3) not in isolation and (2, 5) not in isolation


def test_death_with_a_single_suspect_convicts_nobody_the_first_time() -> None:
    """Once may be the machine's doing."""
    isolation = Isolation()
    assert isolation.died(suspects(5), 1.0) is None
    assert isolation.next(0.0) == (1, 5)
    assert isolation.died(suspects(5), 1.0) == (1, 5)
    assert not isolation.is_active


def test_likeliest_goes_alone_to_its_end_however_long_that_takes() -> None:
    isolation = Isolation()
    isolation.died(suspects(5, 2, 3, 4), 1.0)
    assert isolation.next(0.0) == (1, 5)
    assert isolation.next(10.0**6) is None
    isolation.ended(suspects(5))
    assert isolation.next(10.0**6) == (1, 2)


def test_next_follows_when_the_last_has_ended_or_after_a_pause() -> None:
    isolation = Isolation()
    isolation.died(suspects(*range(8)), 8.0)
    assert isolation.next(0.0) == (1, 0)
    isolation.ended(suspects(0))
    assert isolation.next(0.0) == (1, 1)
    assert isolation.next(0.9) is None
    assert isolation.next(1.0) == (1, 2)
    isolation.ended(suspects(1, 2))
    assert isolation.next(1.1) == (1, 3)


def test_after_a_conviction_the_least_likely_goes_next() -> None:
    isolation = Isolation()
    isolation.died(suspects(5, 2, 3, 4), 1.0)
    assert isolation.next(0.0) == (1, 5)
    assert isolation.died(suspects(5), 1.0) == (1, 5)
    assert isolation.next(0.0) == (1, 4)
    assert isolation.next(0.0) is None
    isolation.ended(suspects(4))
    assert isolation.next(0.0) == (1, 2)


def test_half_of_the_others_run_at_a_time_once_nobody_repeated_the_latest_death() -> None:
    isolation = Isolation()
    isolation.died(suspects(*range(9)), 0.0)
    assert isolation.next(0.0) == (1, 0)
    isolation.ended(suspects(0))
    assert [isolation.next(0.0) for _ in range(5)] == [*suspects(1, 2, 3, 4), None]
    isolation.died(suspects(2, 1), 0.0)
    assert isolation.next(0.0) == (1, 2)
    isolation.ended(suspects(2))
    assert [isolation.next(0.0) for _ in range(2)] == [(1, 1), None]
    isolation.ended(suspects(1))
    assert [isolation.next(0.0) for _ in range(4)] == [*suspects(3, 4, 5), None]


def test_rows_that_were_asked_but_not_begun_stay_suspect() -> None:
    """A death while nothing was being worked on, such as that of an engine that waits, clears nobody."""
    isolation = Isolation()
    isolation.died(suspects(5, 2), 0.0)
    assert isolation.next(0.0) == (1, 5)
    assert isolation.died([], 0.0) is None
    assert (1, 5) in isolation and (1, 2) in isolation
    assert isolation.next(0.0) == (1, 5)


def test_row_that_ends_before_it_was_asked_again_is_cleared() -> None:
    isolation = Isolation()
    isolation.died(suspects(5, 2), 0.0)
    isolation.ended(suspects(5, 2))
    assert not isolation.is_active
    assert isolation.next(0.0) is None


def test_deaths_are_counted_by_row() -> None:
    isolation = Isolation()
    isolation.died(suspects(5, 2), 0.0)
    isolation.next(0.0)
    isolation.died(suspects(5), 0.0)
    assert isolation.deaths == {(1, 5): 2, (1, 2): 1}
