"""The stepping thread: the only one that touches an engine's `add` and `step`, and that does nothing else.

Requests come in prepared, results go out through a callback that must be quick. When the engine raises, every request
under way is given to `on_death` and the thread ends: a dead engine is rebuilt with its process, never mended in place.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.engine.base import Engine
from pipeline.errors import RowError
from pipeline.request import Completion, Failure, Prepared

Done = Callable[[int, Completion | Failure], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One prepared request, its caller's index, and where its result goes."""

    index: int
    prepared: Prepared
    done: Done


class EngineLoop:
    """Steps one engine until it is closed or dies. `busy_s` counts the seconds spent in the engine."""

    def __init__(self, engine: Engine, on_death: Callable[[BaseException], None]) -> None:
        self._engine, self._on_death = engine, on_death
        self._inbox: deque[Work] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._under_way: dict[int, Work] = {}
        self._next_key = 0
        self.busy_s = 0.0
        self._thread = threading.Thread(target=self._run, name="herd-step", daemon=True)
        self._thread.start()

    def submit(self, works: Sequence[Work]) -> None:
        """Hands over prepared requests; they are admitted in this order."""
        with self._wake:
            self._inbox.extend(works)
            self._wake.notify()

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while self._take():
                started = time.perf_counter()
                for key, result in self._engine.step():
                    work = self._under_way.pop(key)
                    work.done(work.index, result)
                self.busy_s += time.perf_counter() - started
        except BaseException as e:  # whatever kills the engine is the caller's to report, with its traceback
            self._on_death(e)

    def _take(self) -> bool:
        """Admits what the engine has room for; waits while there is nothing to do; false once closed."""
        with self._wake:
            while not self._inbox and not self._engine.has_work():
                if self._closed:
                    return False
                self._wake.wait()
            room = self._engine.info.max_num_seqs * 2 - len(self._under_way)
            taken = [self._inbox.popleft() for _ in range(min(max(room, 0), len(self._inbox)))]
        for work in taken:
            key = self._next_key
            self._next_key += 1
            try:
                self._engine.add(key, work.prepared)
            except RowError as e:
                work.done(work.index, Failure.of(e))
            else:
                self._under_way[key] = work
        return not self._closed
