import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.host.journal import Journal, Mark, Phase, suspects

ACTIVE = [Phase.RENDER, Phase.PREPARE, Phase.ADMIT, Phase.ENGINE, Phase.PARSE]


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal.create(3, 10)
    yield made
    made.remove()


def rows(journal: Journal) -> list[tuple[int, int, Phase]]:
    """Slot, index and phase of the rows that are worked on, newest first."""
    return [(m.slot, m.index, m.phase) for m in journal.active()]


def places(marks: list[Mark]) -> list[tuple[int, int]]:
    return [(m.slot, m.index) for m in marks]


def test_new_journal_holds_nothing(journal: Journal) -> None:
    assert journal.active() == []
    assert journal.progress == (0, 0)


def test_every_cell_is_a_row_of_its_own(journal: Journal) -> None:
    wanted = [(slot, index) for slot in range(3) for index in range(10)]
    for slot, index in wanted:
        journal.mark(slot, index, Phase.ENGINE)
    assert places(journal.active()) == wanted[::-1]


@pytest.mark.parametrize("phase", list(Phase))
def test_only_rows_that_code_works_on_are_active(journal: Journal, phase: Phase) -> None:
    journal.mark(1, 4, phase)
    assert rows(journal) == ([(1, 4, phase)] if phase in ACTIVE else [])
    assert phase.is_active is (phase in ACTIVE)


def test_active_rows_are_in_the_order_of_their_latest_mark(journal: Journal) -> None:
    for slot, index in ((0, 0), (2, 3), (1, 9)):
        journal.mark(slot, index, Phase.RENDER)
    journal.mark(0, 0, Phase.ENGINE)
    journal.mark(2, 3, Phase.RENDERED)
    assert rows(journal) == [(0, 0, Phase.ENGINE), (1, 9, Phase.RENDER)]


def test_row_that_has_ended_can_begin_again(journal: Journal) -> None:
    for phase in (Phase.ENGINE, Phase.IDLE, Phase.RENDER):
        journal.mark(0, 5, phase)
    assert rows(journal) == [(0, 5, Phase.RENDER)]


def test_progress_changes_with_each_mark_and_with_tokens(journal: Journal) -> None:
    seen = []
    for act in (
        lambda: journal.mark(0, 0, Phase.RENDER),
        lambda: journal.mark(0, 0, Phase.RENDERED),
        lambda: journal.beat(7),
        lambda: journal.beat(9),
    ):
        act()
        seen.append(journal.progress)
    assert len(set(seen)) == 4
    assert [tokens for _, tokens in seen] == [0, 0, 7, 9]


def test_clear_forgets_everything(journal: Journal) -> None:
    journal.mark(0, 0, Phase.ENGINE)
    journal.beat(7)
    journal.clear()
    assert journal.active() == []
    assert journal.progress == (0, 0)


def test_two_journals_over_one_file_are_one(journal: Journal) -> None:
    other = Journal(journal.path, journal.slots, journal.rows)
    other.mark(2, 9, Phase.ENGINE)
    other.beat(5)
    assert rows(journal) == [(2, 9, Phase.ENGINE)]
    assert journal.progress[0] > 0
    assert journal.progress[1] == 5
    journal.clear()
    assert other.active() == []


def test_opening_a_journal_again_forgets_nothing(journal: Journal) -> None:
    journal.mark(1, 1, Phase.RENDER)
    assert places(Journal(journal.path, 3, 10).active()) == [(1, 1)]


def test_remove_takes_the_file_away() -> None:
    journal = Journal.create(1, 1)
    assert Path(journal.path).stat().st_size == 8 * 3
    journal.remove()
    assert not Path(journal.path).exists()


CHILD = """
import os, signal, sys
from pipeline.host.journal import Journal, Phase
journal = Journal(sys.argv[1], 3, 10)
for index in range(5):
    journal.mark(0, index, Phase.ENGINE)
journal.mark(0, 1, Phase.IDLE)
journal.beat(42)
journal.mark(2, 9, Phase.ADMIT)
os.kill(os.getpid(), signal.{})
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV"])
def test_marks_outlive_the_process_that_made_them(journal: Journal, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ended = subprocess.run([sys.executable, "-c", CHILD.format(how), journal.path], env=environment, timeout=60)
    assert ended.returncode == -getattr(signal, how)
    assert places(journal.active()) == [(2, 9), (0, 4), (0, 3), (0, 2), (0, 0)]
    assert journal.active()[0].phase is Phase.ADMIT
    assert journal.progress[1] == 42


def admitted(count: int, first_order: int = 1) -> list[Mark]:
    """Marks of so many admitted rows, newest first."""
    return [Mark(0, n, Phase.ENGINE, first_order + n) for n in range(count)][::-1]


def test_all_are_suspect_while_the_engine_has_room() -> None:
    assert suspects(admitted(4), 4) == admitted(4)
    assert suspects([], 4) == []


def test_rows_that_wait_inside_the_engine_are_not_suspect() -> None:
    assert [m.index for m in suspects(admitted(7), 4)] == [3, 2, 1, 0]


def test_row_that_is_being_admitted_is_suspect_however_full_the_engine() -> None:
    admitting = Mark(0, 8, Phase.ADMIT, 9)
    assert suspects([admitting, *admitted(8)], 4) == [admitting, *admitted(8)[4:]]


def test_rows_outside_the_engine_take_no_room_in_it() -> None:
    marks = sorted([*admitted(6), Mark(1, 0, Phase.RENDER, 50), Mark(1, 1, Phase.PREPARE, 0)], key=lambda m: -m.order)
    assert [(m.slot, m.index) for m in suspects(marks, 4)] == [(1, 0), (0, 3), (0, 2), (0, 1), (0, 0), (1, 1)]


@given(
    phases=st.dictionaries(
        st.tuples(st.integers(0, 2), st.integers(0, 9)), st.sampled_from(list(Phase)), min_size=1, max_size=30
    ),
    size=st.integers(1, 12),
)
def test_suspects_are_the_oldest_in_the_engine_and_whatever_is_worked_on_outside(
    phases: dict[tuple[int, int], Phase], size: int
) -> None:
    journal = Journal.create(3, 10)
    try:
        for (slot, index), phase in phases.items():
            journal.mark(slot, index, phase)
        found = suspects(journal.active(), size)
    finally:
        journal.remove()
    running = [place for place, phase in phases.items() if phase is Phase.ENGINE][:size]
    outside = [p for p, phase in phases.items() if phase.is_active and phase is not Phase.ENGINE]
    assert set(places(found)) == {*running, *outside}
    assert [m.order for m in found] == sorted((m.order for m in found), reverse=True)
