"""What an engine's process has in hand, in memory that outlives it: a row's phase, and the order of events.

The host makes the file, the engine's process writes it, and after a death the host reads which rows were being worked
on. A mark is one store into shared memory: no call, no lock, no copy, and it stands even if the next instruction is a
segmentation fault.
"""

import mmap
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

HEADER_CELLS = 2
PHASE_BITS = 3


class Phase(IntEnum):
    """Where a row is. Rows that only wait (for a thread, for admission, to be handed back) are in none of the active
    phases."""

    IDLE = 0
    RENDER = 1
    RENDERED = 2
    PREPARE = 3
    PREPARED = 4
    ADMIT = 5
    ENGINE = 6
    PARSE = 7

    @property
    def is_active(self) -> bool:
        """Whether code is at work on the row, so that a death may be its doing."""
        return self in (Phase.RENDER, Phase.PREPARE, Phase.ADMIT, Phase.ENGINE, Phase.PARSE)


@dataclass(frozen=True, slots=True)
class Mark:
    """A row's latest mark. `order` is a time: of two rows the newer has the larger one."""

    slot: int
    index: int
    phase: Phase
    order: int


class Journal:
    """`slots` tables of `rows` cells each, in a file that two processes map. A cell holds `order << 3 | phase`."""

    def __init__(self, path: str, slots: int, rows: int) -> None:
        cells = HEADER_CELLS + slots * rows
        if not os.path.getsize(path):
            os.truncate(path, cells * 8)
        self.path, self.slots, self.rows = path, slots, rows
        with open(path, "r+b") as file:
            # a memoryview, since one store through it takes a third of the time of one into a NumPy array
            self._view = memoryview(mmap.mmap(file.fileno(), cells * 8)).cast("Q")

    @classmethod
    def create(cls, slots: int, rows: int) -> "Journal":
        """A new journal in a temporary file, which `remove` deletes."""
        handle, path = tempfile.mkstemp(prefix="herd-journal-")
        os.close(handle)
        return cls(path, slots, rows)

    def remove(self) -> None:
        os.unlink(self.path)

    def mark(self, slot: int, index: int, phase: Phase) -> None:
        order = time.monotonic_ns()  # one clock for all processes of the engine
        self._view[HEADER_CELLS + slot * self.rows + index] = order << PHASE_BITS | phase
        self._view[0] = order

    def beat(self, tokens: int) -> None:
        """Says how many tokens the engine has made so far."""
        self._view[1] = tokens

    @property
    def progress(self) -> tuple[int, int]:
        """Changes while anything gets on: the time of the latest mark, and the number of tokens."""
        return self._view[0], self._view[1]

    def active(self) -> list[Mark]:
        """The rows that were being worked on, newest first."""
        cells = np.asarray(self._view)[HEADER_CELLS:].reshape(self.slots, self.rows)
        phases = cells & ((1 << PHASE_BITS) - 1)
        found = np.argwhere(np.isin(phases, [p for p in Phase if p.is_active]))
        marks = [Mark(int(s), int(i), Phase(int(phases[s, i])), int(cells[s, i]) >> PHASE_BITS) for s, i in found]
        return sorted(marks, key=lambda m: -m.order)

    def clear(self) -> None:
        """Forgets everything, for the next process."""
        np.asarray(self._view)[:] = 0


def suspects(marks: Sequence[Mark], max_num_seqs: int) -> list[Mark]:
    """The marks of rows that can have killed the engine, the likeliest first; `marks` are newest first.

    Admitted requests are scheduled in the order of admission and at most `max_num_seqs` run at a time, so the newest
    beyond that number only wait inside the engine, where nothing touches them.
    """
    admitted = [m for m in marks if m.phase is Phase.ENGINE]
    waiting = set(admitted[: max(0, len(admitted) - max_num_seqs)])
    return [m for m in marks if m not in waiting]
