"""Finds the rows that kill an engine, with as few deaths as it can. Pure: deaths and answers in, the next row to ask out.

A death makes suspects of the rows that were being worked on, the newest first: what has run for a while is likely to run
on. Only suspects are asked until all of them are cleared or convicted:

- The likeliest goes alone, to its end. If the engine dies again, nobody else can have done it: it is convicted.
- The others follow one by one. The next is admitted when the last has ended, or after a pause that spreads the whole
  search over about the time that one restart takes. So short answers are in fact asked alone, and each death convicts;
  long ones run side by side, and a death points at the one that came last.
- At most half of the rows of the latest death run at a time, so that whatever kills late is cornered by halves.
- After a conviction the least likely suspect goes next: if that dies too, the machine is to be doubted.

A death that nobody repeats was the machine's, and costs no row.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

Row = tuple[int, int]
"""A batch's number and the row's index in it."""


class Isolation:
    """The search on one engine. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._queue: deque[Row] = deque()
        self._running: dict[Row, None] = {}
        self._alone: Row | None = None
        self._asked_any = False
        self._cornered: set[Row] = set()
        self._limit = 1
        self._pause_s = 0.0
        self._latest = 0.0
        self.deaths: Counter[Row] = Counter()
        """How often each row was a suspect."""

    @property
    def is_active(self) -> bool:
        """Whether there are suspects left; while there are, no other row may be asked."""
        return bool(self._queue or self._running)

    def __contains__(self, row: Row) -> bool:
        return row in self._running or row in self._queue

    def died(self, suspects: Sequence[Row], restart_s: float) -> Row | None:
        """Takes a death and its suspects, the likeliest first; gives the row that it convicts, if it does.

        `restart_s` is what a death costs: the search takes about as long at most, beyond the rows' own time.
        """
        for row in suspects:
            self.deaths[row] += 1
        convicted = suspects[0] if len(suspects) == 1 and self.deaths[suspects[0]] > 1 else None
        rest = [row for row in suspects if row != convicted]
        known = dict.fromkeys([*rest, *self._running, *self._queue])
        if convicted is not None:
            known.pop(convicted, None)
        self._queue = deque(known)
        self._running, self._alone, self._asked_any = {}, None, False
        if convicted is not None:
            self._queue.rotate(1)  # the least likely one is the proof that the engine works at all
            self._cornered = set()
        else:
            self._cornered = set(rest)
        self._limit = max(1, (len(self._cornered) or len(self._queue)) // 2)
        self._pause_s = restart_s / max(1, len(self._queue))
        return convicted

    def next(self, now: float) -> Row | None:
        """The row to ask now, if it is time for one. The caller asks it at once."""
        if not self._queue or self._alone is not None or len(self._running) >= self._limit:
            return None
        if self._running and now - self._latest < self._pause_s:
            return None
        row = self._queue.popleft()
        if not self._asked_any:
            self._alone, self._asked_any = row, True
        self._running[row] = None
        self._latest = now
        return row

    def ended(self, rows: Iterable[Row]) -> None:
        """These rows have their outcome, and are cleared."""
        for row in rows:
            if row in self._running:
                del self._running[row]
            elif row in self._queue:
                self._queue.remove(row)
            if row == self._alone:
                self._alone = None
            if row in self._cornered:
                self._cornered.discard(row)
                if not self._cornered:  # nobody repeated that death
                    self._limit = max(1, len(self._queue) // 2)
