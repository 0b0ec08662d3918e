"""The stepping thread: the only one that touches an engine's `add` and `step`, and that does nothing else.

Requests come in prepared, the results of each step go out through a callback that must be quick. When the engine raises,
`on_death` is told and the thread ends: a dead engine is rebuilt with its process, never mended in place.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipeline.engine.base import Engine
from pipeline.errors import RowError
from pipeline.host.journal import Journal, Phase
from pipeline.request import Completion, Failure, Prepared

PATIENCE_S = 0.1
"""How long an idle engine waits for a batch to fill."""


class Work(NamedTuple):
    """One prepared request, its shard's slot in the journal, its number in the shard, and what the caller knows it by."""

    slot: int
    row: int
    prepared: Prepared
    asked: Any


Done = Callable[[list[tuple[Work, Completion | Failure]]], None]


@dataclass
class Window:
    """The engine's window: from the first admission to the latest answer. `busy_s` of it were spent stepping; the stepping
    thread waited for `render_wait_s` with rows on their way to it, and for `rows_wait_s` with none."""

    rows: int = 0
    busy_s: float = 0.0
    render_wait_s: float = 0.0
    rows_wait_s: float = 0.0
    began: float | None = None
    latest: float = 0.0

    @property
    def seconds(self) -> float:
        return 0.0 if self.began is None else max(0.0, self.latest - self.began)

    def figures(self) -> dict[str, float]:
        return {
            "window_s": self.seconds,
            "rows": self.rows,
            "busy_s": self.busy_s,
            "render_wait_s": self.render_wait_s,
            "rows_wait_s": self.rows_wait_s,
        }


class EngineLoop:
    """Steps one engine until it is closed or dies, and keeps its figures."""

    def __init__(
        self, engine: Engine, journal: Journal, on_done: Done, on_death: Callable[[BaseException], None]
    ) -> None:
        self._engine, self._journal, self._on_done, self._on_death = engine, journal, on_done, on_death
        self._inbox: deque[Work] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._under_way: dict[int, Work] = {}
        self._next_key = 0
        self._expected = 0
        self._quantum = max(1, engine.info.max_num_seqs // 2)
        self.window = Window()
        self._ended = threading.Event()

    def announce(self, rows: int) -> None:
        """Says that so many more rows are on their way; each must be settled by `submit`."""
        with self._wake:
            self._expected += rows

    def submit(self, works: Sequence[Work], *, settled: int) -> None:
        """Hands over prepared requests, which are admitted in this order. `settled` counts the announced rows that need
        not be waited for any more: these, and those that failed on their way."""
        with self._wake:
            self._expected -= settled
            self._inbox.extend(works)
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._ended.wait(timeout=10)

    def run(self) -> None:
        """Steps until the loop is closed or the engine dies. The calling thread becomes the stepping thread; it should be
        the one that made the engine, since torch on a CPU keeps threads and memory by thread, and on another thread steps
        took a fifth longer."""
        try:
            while self._take():
                started = time.perf_counter()
                ended = self._engine.step()
                now = time.perf_counter()
                self._journal.beat(self._engine.tokens)
                self.window.busy_s += now - started
                if ended:
                    self.window.rows += len(ended)
                    self.window.latest = now
                    self._on_done([(self._under_way.pop(key), result) for key, result in ended])
        except BaseException as e:  # whatever kills the engine is the caller's to report, with its traceback
            self._on_death(e)
        finally:
            self._ended.set()

    def _is_admittable(self) -> bool:
        """Whether the inbox is worth a step: a batch of it, or all that is on its way. A step costs nearly as much for
        one new request as for many, so requests that trickle in one by one would starve an engine of throughput."""
        return len(self._inbox) >= self._quantum or (bool(self._inbox) and self._expected == 0)

    def _count_wait(self, for_render: bool, seconds: float) -> None:
        if self.window.began is None:
            return  # the window has not begun
        if for_render:
            self.window.render_wait_s += seconds
        else:
            self.window.rows_wait_s += seconds

    def _take(self) -> bool:
        """Admits what the engine has room for; waits while there is nothing to do; false once closed."""
        with self._wake:
            admits = self._is_admittable()
            while not admits and not self._engine.has_work():
                if self._closed:
                    return False
                waited_for_render, began = self._expected > 0, time.perf_counter()
                # an idle engine does not wait for a slow row: what is here is better than nothing
                is_late = not self._wake.wait(timeout=PATIENCE_S if self._inbox else None)
                self._count_wait(waited_for_render, time.perf_counter() - began)
                admits = self._is_admittable() or (is_late and bool(self._inbox))
            room = self._engine.info.max_num_seqs * 2 - len(self._under_way) if admits else 0
            taken = [self._inbox.popleft() for _ in range(min(max(room, 0), len(self._inbox)))]
        if taken and self.window.began is None:
            self.window.began = time.perf_counter()
        refused: list[tuple[Work, Completion | Failure]] = []
        for work in taken:
            key = self._next_key
            self._next_key += 1
            self._journal.mark(work.slot, work.row, Phase.ADMIT)
            try:
                self._engine.add(key, work.prepared)
            except RowError as e:
                refused.append((work, Failure.of(e)))
            else:
                self._journal.mark(work.slot, work.row, Phase.ENGINE)
                self._under_way[key] = work
        if refused:
            self._on_done(refused)
        return not self._closed
