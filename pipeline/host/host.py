"""Keeps one engine answering: starts its process, feeds it shards, watches it, and replaces it when it dies or hangs.

Runs in the engine actor, beside the process and never inside it, so that a segmentation fault, the kernel's OOM killer or
a hung kernel costs an engine and nothing else: what was answered is here, what was being worked on is in the journal.
Which rows are to blame is `pipeline.host.isolation`'s to find.
"""

import contextlib
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe, wait
from typing import Any

import pyarrow as pa

from pipeline.accounts import Answered
from pipeline.engine.base import EngineInfo
from pipeline.errors import EngineStartError, HerdError, Stage
from pipeline.facts import now
from pipeline.host.forkserver import Line
from pipeline.host.isolation import Isolation, Row
from pipeline.host.journal import Journal, suspects
from pipeline.host.pieces import piece_schema
from pipeline.host.process import EngineJob
from pipeline.ipc import from_ipc, to_ipc
from pipeline.metrics import METRICS

POLL_S = 0.2
IDLE_POLL_S = 2.0
MAX_BACKOFF_S = 30.0
GAUGES = frozenset(metric.figure for metric in METRICS if metric.is_gauge)
"""Figures that tell of a moment; all others are sums."""
IDLE_DEATH_S = 1.0
"""How long the death of an engine that had nothing in hand is kept quiet: Ray ends an actor's children before the actor."""


@dataclass(frozen=True)
class Events:
    """What the host tells while it works; each is called on the host's thread and must be quick."""

    placed: Callable[[Sequence[str]], None] = lambda nodes: None
    ready: Callable[[EngineInfo, float], None] = lambda info, seconds: None
    figures: Callable[[dict[str, float]], None] = lambda figures: None
    died: Callable[[str, str], None] = lambda error_type, message: None
    noted: Callable[[str], None] = lambda message: None


@dataclass
class _Batch:
    """The rows of one shard that are asked, in one slot of the journal."""

    number: int
    slot: int
    rows: pa.Table
    missing: set[int]
    answer: "Future[Answered]"
    longest_first: bool
    started: float = field(default_factory=time.monotonic)
    is_sent: bool = False
    pieces: list[pa.Table] = field(default_factory=list)
    history: list[tuple[int, int, str, str, str]] = field(default_factory=list)

    def tries(self) -> list[int]:
        out = [1] * self.rows.num_rows
        for index, number, *_ in self.history:
            out[index] = max(out[index], number + 1)
        return out


class EngineHost:
    """One engine, for as long as the host lives. `answer` may be called from any number of threads;
    `pool.shards_in_flight` shards at a time are asked."""

    def __init__(self, job: EngineJob, *, max_rows: int, events: Events | None = None) -> None:
        """Starts the engine, and returns when it is ready. `max_rows` is the size of the largest shard to come.

        Raises:
            EngineStartError: it cannot start, and why.
        """
        self._job, self._limits = job, job.config.limits
        self._events = events or Events()
        self._slots = job.config.pool.shards_in_flight
        self._schema = piece_schema(job.config)
        self._journal = Journal.create(self._slots, max_rows)
        self._isolation = Isolation()
        self._convicted: list[tuple[Row, str, str]] = []
        self._batches: dict[int, _Batch] = {}
        self._arrivals: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self._doorbell_in, self._doorbell_out = os.pipe()
        os.set_blocking(self._doorbell_out, False)
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self._slots):
            self._free.put(slot)
        self._admission = threading.Lock()
        self._numbers = 0
        self._tickets: dict[int, _Batch] = {}
        self._open: Counter[int] = Counter()
        self._next_ticket = 0
        self._deaths_in_a_row = 0
        self._restart_s = 0.0
        self._earlier: dict[str, float] = {}
        self._life: dict[str, float] = {}
        self._closed = False
        self._fault: HerdError | None = None
        self.info: EngineInfo | None = None
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="herd-host", daemon=True)
        self._thread.start()
        started.result()

    def answer(self, rows: pa.Table, *, longest_first: bool = False) -> Answered:
        """Asks the rows of one shard, and waits for all of them.

        Raises:
            HerdError: the engine is beyond repair; no row of the shard is answered.
        """
        future: Future[Answered] = Future()
        slot = self._free.get()
        try:
            with self._admission:
                if self._fault is not None:
                    raise self._fault
                self._numbers += 1
                self._arrivals.put(_Batch(self._numbers, slot, rows, set(range(rows.num_rows)), future, longest_first))
            self._ring()
            return future.result()
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Ends the engine's process; rows under way are not waited for."""
        self._closed = True
        self._ring()
        self._thread.join(timeout=10)

    def figures(self) -> dict[str, float]:
        """The engine's figures, see `Worker.figures`, over all its lives; what it has in hand now, of this one."""
        earlier = {name: value for name, value in self._earlier.items() if name not in GAUGES}
        names = earlier.keys() | self._life.keys()
        return {name: round(earlier.get(name, 0.0) + self._life.get(name, 0.0), 4) for name in names}

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._doorbell_out, b"!")

    # Below here everything runs on the host's thread.

    def _run(self, started: "Future[None]") -> None:
        fault: HerdError | None = None
        environment = self._job.environment()
        line = Line(self._job.fork_server, self._job.config.engine.kind, environment)
        try:
            while not self._closed:
                life = _Life(line, environment, self._job, self._journal, self._slots)
                try:
                    death = self._live(life, started)
                finally:
                    life.end()
                if death is None:
                    return
                self._bury(*death)
        except HerdError as e:
            fault = e
        except Exception as e:
            fault = HerdError(f"The engine's host failed: {type(e).__name__}: {e}")
        finally:
            line.close()
            self._journal.remove()
            with self._admission:
                self._fault = fault or HerdError("The engine was closed")
            while True:
                with contextlib.suppress(queue.Empty):
                    batch = self._arrivals.get_nowait()
                    self._batches[batch.number] = batch
                    continue
                break
            for batch in self._batches.values():
                batch.answer.set_exception(self._fault)
            if not started.done():
                started.set_exception(self._fault)

    def _live(self, life: "_Life", started: "Future[None]") -> tuple[str, str, float] | None:
        """One life of the engine: until it dies, as (error type, message, seconds that its start took), or the host is
        closed."""
        born, ending = time.monotonic(), life.line.fileno()
        progress, since, start_s = (-1, -1), born, 0.0
        said = ""
        is_ready, is_placed = False, self._job.gang is None
        self._life = {}
        while not self._closed:
            self._take_arrivals()
            if is_ready:
                self._feed(life)
            is_busy = bool(self._batches) or not is_ready
            found = wait([life.connection, ending, self._doorbell_in], POLL_S if is_busy else IDLE_POLL_S)
            if self._doorbell_in in found:
                os.read(self._doorbell_in, 4096)
            for message in life.messages():  # after its death too: what it said before is as good as ever
                match message:
                    case ("placed", nodes):
                        is_placed, born = True, time.monotonic()
                        self._events.placed(nodes)
                    case ("ready", info):
                        is_ready, start_s = True, time.monotonic() - born
                        progress, since = self._journal.progress, time.monotonic()
                        self.info = info
                        self._events.ready(info, start_s)
                        if not started.done():
                            started.set_result(None)
                    case ("failed", why):
                        said = why
                        if not started.done():  # what fails at its first start will fail again
                            raise EngineStartError(why)
                    case ("died", why):
                        said = why
                    case ("piece", ticket, data, figures):
                        self._life = figures
                        self._take_piece(ticket, from_ipc(data))
            if ending in found:
                how = life.line.how_it_ended()
                return "engine_death", f"{said} ({how})" if said else how, start_s
            if self._journal.progress != progress or not self._batches:
                progress, since = self._journal.progress, time.monotonic()
            limit = self._limits.stall_s if is_ready else self._limits.start_s
            if is_placed and time.monotonic() - (since if is_ready else born) > limit:
                what = "no row and no token got on" if is_ready else "it did not get ready"
                return "engine_stall", f"{what} for {limit:g} s; its process was killed", start_s
        return None

    def _take_arrivals(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                batch = self._arrivals.get_nowait()
                self._batches[batch.number] = batch

    def _feed(self, life: "_Life") -> None:
        """Asks what may be asked now: while there are suspects only the next of them, else every row that is missing."""
        if self._isolation.is_active:
            while (row := self._isolation.next(time.monotonic())) is not None:
                self._ask(life, self._batches[row[0]], [row[1]])
            return
        convicted = {row for row, _, _ in self._convicted}
        if convicted and (proof := self._proof(convicted)) is not None:
            if not self._tickets:
                self._ask(life, self._batches[proof[0]], [proof[1]])
            return
        for batch in self._batches.values():
            if not batch.is_sent:
                batch.is_sent = True
                if rows := [i for i in sorted(batch.missing) if (batch.number, i) not in convicted]:
                    self._ask(life, batch, rows)
        if not self._tickets:
            self._settle()  # nobody is left to prove the engine by but its start, which has just gone well

    def _proof(self, convicted: set[Row]) -> Row | None:
        """A row to show by that the engine works, before others are asked that may be like the convicted ones: rows that
        are alike follow each other, and several deaths in a row without an answer would look like the machine's."""
        for batch in reversed(self._batches.values()):
            for index in sorted(batch.missing, reverse=True):
                if (batch.number, index) not in convicted:
                    return batch.number, index
        return None

    def _ask(self, life: "_Life", batch: _Batch, indices: list[int]) -> None:
        self._next_ticket += 1
        self._tickets[self._next_ticket] = batch
        self._open[self._next_ticket] = len(indices)
        is_whole = len(indices) == batch.rows.num_rows
        rows = batch.rows if is_whole else batch.rows.take(indices)
        life.send(self._next_ticket, batch.slot, indices, to_ipc(rows), batch.longest_first)

    def _take_piece(self, ticket: int, piece: pa.Table) -> None:
        batch = self._tickets[ticket]
        indices = piece["index"].to_pylist()
        self._open[ticket] -= len(indices)
        if not self._open[ticket]:
            del self._tickets[ticket], self._open[ticket]
        batch.pieces.append(piece)
        batch.missing.difference_update(indices)
        if piece["stage"].null_count:  # the engine's own answers, not rows that never reached it
            self._deaths_in_a_row = 0
            self._settle()
        if self._isolation.is_active:
            self._isolation.ended([(batch.number, i) for i in indices])
            self._note_clearance()
        self._events.figures(self.figures())
        self._finish(batch)

    def _note_clearance(self) -> None:
        if not self._isolation.is_active:
            self._events.noted("every suspect of the engine's deaths is cleared or quarantined")

    def _finish(self, batch: _Batch) -> None:
        if batch.missing or batch.number not in self._batches:
            return
        del self._batches[batch.number]
        whole = pa.concat_tables(batch.pieces).sort_by("index")
        answered = Answered(
            whole.drop_columns(["index"]), batch.tries(), batch.history, time.monotonic() - batch.started
        )
        batch.answer.set_result(answered)

    def _bury(self, error_type: str, message: str, start_s: float) -> None:
        """Takes stock after a death: who is suspect, who is convicted, and whether there is any sense in going on.

        Raises:
            EngineStartError: the engine has died too often without an answer in between.
        """
        if not self._batches:
            time.sleep(IDLE_DEATH_S)
        self._earlier, self._life = self.figures(), {}
        self._restart_s = start_s or self._restart_s
        self._deaths_in_a_row += 1
        self._tickets.clear()
        self._open.clear()
        marks = suspects(self._journal.active(), self.info.max_num_seqs if self.info else 1)
        self._journal.clear()
        by_slot = {batch.slot: batch for batch in self._batches.values()}
        rows: list[Row] = []
        for mark in marks:
            batch = by_slot.get(mark.slot)
            if batch is not None and mark.index in batch.missing:
                rows.append((batch.number, mark.index))
        for batch in self._batches.values():
            batch.is_sent = False
        self._events.died(error_type, f"{message}; {len(rows)} rows were being worked on")
        self._record(rows, error_type, message)
        convicted = self._isolation.died(rows, self._restart_s)
        if self._deaths_in_a_row >= self._limits.max_engine_restarts:
            raise EngineStartError(
                f"The engine died {self._deaths_in_a_row} times in a row without an answer in between, last: {message}",
                todo="Look for the machine's fault rather than a row's: GPU, memory, model files.",
            )
        if convicted is not None:
            self._convicted.append((convicted, error_type, message))
        time.sleep(min(MAX_BACKOFF_S, 0.1 * 4 ** (self._deaths_in_a_row - 1)))

    def _record(self, rows: Sequence[Row], error_type: str, message: str) -> None:
        for number, index in rows:
            batch = self._batches[number]
            tries = 1 + sum(1 for entry in batch.history if entry[0] == index)
            batch.history.append((index, tries, error_type, message, now()))

    def _settle(self) -> None:
        """Quarantines the rows that are convicted. Until the engine has shown that it works at all, by an answer to
        another row, the fault may be the machine's."""
        convicted, self._convicted = self._convicted, []
        for row, error_type, message in convicted:
            self._quarantine(row, error_type, message)

    def _quarantine(self, row: Row, error_type: str, message: str) -> None:
        number, index = row
        batch = self._batches[number]
        deaths = [entry for entry in batch.history if entry[0] == index]
        batch.history.remove(deaths[-1])  # the last of its tries is its outcome
        what = "died" if error_type == "engine_death" else "hung"
        why = f"the engine {what} {len(deaths)} times with this row, the last time with it alone: {message}"
        failed: dict[str, Any] = dict.fromkeys(self._schema.names)
        failed.update(index=index, stage=str(Stage.ENGINE), error_type=error_type, message=why)
        batch.pieces.append(pa.Table.from_pylist([failed], schema=self._schema))
        batch.missing.discard(index)
        self._events.noted(f"a row is quarantined as {error_type}: {message}")
        self._finish(batch)


class _Life:
    """One process of the engine, with the host's end of their pipe and a thread that sends, since a hung process reads
    nothing and must not block whoever watches it."""

    def __init__(self, line: Line, environment: dict[str, str], job: EngineJob, journal: Journal, slots: int) -> None:
        self.line = line
        self.connection, theirs = Pipe()
        with theirs:
            line.fork(theirs)
        self._outbox: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.send(environment, os.getcwd(), job, journal.path, slots, journal.rows)
        threading.Thread(target=self._send_always, name="herd-send", daemon=True).start()

    def send(self, *message: Any) -> None:
        self._outbox.put(message)

    def messages(self) -> list[tuple[Any, ...]]:
        """What has arrived, without waiting for more."""
        out = []
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                out.append(self.connection.recv())
        return out

    def end(self) -> None:
        self.line.kill()
        self._outbox.put(None)
        self.connection.close()

    def _send_always(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self.connection.send(message)
