"""Answers rows on one engine: renders, prepares, asks, parses. Runs in the engine's process; knows no Ray and no storage.

Rows go out to the rendering processes (`pipeline.host.rendering`) in chunks and come back as engine inputs. Three threads
meet here: one takes them back in order and hands them to the engine's loop, which steps on another, and a third hands
back what has ended, in columns. Rows in flight are bounded over all questions, so that prepared images wait for the
engine and not the other way round. Of identical requests one is asked; see `pipeline.host.memo`.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa

from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.engine.base import Engine
from pipeline.engine.loop import EngineLoop, Work
from pipeline.host.journal import Journal, Phase
from pipeline.host.memo import Known, Memo
from pipeline.host.order import asking_order
from pipeline.host.pieces import Pieces
from pipeline.host.rendering import Ready, Recalled, Rendered, Renderers
from pipeline.request import Completion, Failure, Outcome

CHUNK_ROWS = 16
"""Rows with images that are rendered as one task."""
TEXT_CHUNK_ROWS = 512
"""Rows of text alone: in bursts, since on a machine without a spare core the stepping thread waits for each of them."""
FLUSH_S = 1.0
"""How long an ended row waits at most for others before it is handed back."""

Emit = Callable[[int, pa.RecordBatch], None]


class Slots:
    """A counting gate: how many rows may be between rendering and their answer."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._free >= count)
            self._free -= count

    def give(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()


class _Question:
    """Some rows of one shard under way. Results come in from the stepping and the preparing thread."""

    def __init__(self, ticket: int, slot: int, num_rows: int) -> None:
        self.ticket, self.slot = ticket, slot
        self._ended: list[tuple[int, Outcome]] = []
        self._left = num_rows
        self._lock = threading.Lock()

    def end(self, index: int, outcome: Outcome) -> bool:
        """Keeps a row's result; says whether it was the last."""
        with self._lock:
            self._ended.append((index, outcome))
            self._left -= 1
            return self._left == 0

    def take_ended(self) -> tuple[list[tuple[int, Outcome]], bool]:
        """What has ended since the last call, by index, and whether nothing is left to come."""
        with self._lock:
            ended, self._ended = self._ended, []
            return sorted(ended, key=lambda e: e[0]), self._left == 0


class _Asked(NamedTuple):
    """A row on its way through the engine, or waiting for another row's answer. The digests are what is known of them."""

    question: _Question
    row: int
    sampling_sha256: str | None = None
    key: str | None = None
    request_sha256: str | None = None


def _asked(question: _Question, index: int, row: Rendered) -> _Asked:
    if isinstance(row, Ready):
        return _Asked(question, index, row.sampling_sha256, row.key, row.prepared.request_sha256)
    return _Asked(question, index, row.sampling_sha256 if isinstance(row, Recalled) else None)


class Worker:
    """One engine and the threads around it. `emit(ticket, piece)` hands back rows, with the columns of `piece_schema`."""

    def __init__(
        self,
        config: RunConfig,
        columns: Columns,
        engine: Engine,
        journal: Journal,
        emit: Emit,
        on_death: Callable[[BaseException], None],
        renderers: Renderers,
        *,
        run_id: str = "",
    ) -> None:
        """`run_id` stands in the lineage of rows that share another row's answer."""
        self._columns, self._engine, self._journal, self._emit, self._on_death = (
            columns,
            engine,
            journal,
            emit,
            on_death,
        )
        self._renderers, self._run_id = renderers, run_id
        self._pieces = Pieces(config, engine.texts, self._mark_parsing)
        self._memo: Memo[_Asked] | None = Memo() if config.cache.in_run else None
        self._chunk_rows = CHUNK_ROWS if columns.images or columns.may_fetch else TEXT_CHUNK_ROWS
        self._taking_back = ThreadPoolExecutor(1, thread_name_prefix="herd-rendered")
        self._slots = Slots(max(2 * engine.info.max_num_seqs, 2 * self._chunk_rows))
        self._questions: dict[int, _Question] = {}
        self._wake = threading.Event()
        self._flushing = threading.Lock()
        self._spent: dict[str, float] = defaultdict(float)
        self._counting = threading.Lock()
        self._loop = EngineLoop(engine, journal, self._done, self._died)
        renderers.start(on_death)
        threading.Thread(target=self._flush_always, name="herd-flush", daemon=True).start()

    def run(self) -> None:
        """Steps the engine until the worker is closed or the engine dies; see `EngineLoop.run`."""
        self._loop.run()

    def figures(self) -> dict[str, float]:
        """Of the engine's window so far: its seconds and rows, and where the time went; see `pipeline.progress`."""
        with self._counting:
            spent = dict(self._spent)
        spent |= {**self._renderers.figures(), **self._loop.window.figures(), **self._engine.gauges()}
        return {name: round(value, 4) for name, value in spent.items()}

    def ask(
        self, ticket: int, slot: int, indices: Sequence[int], rows: pa.Table, *, longest_first: bool = False
    ) -> None:
        """Takes rows of one shard; returns when all have entered. `indices` number them within the shard, and `slot` is
        the shard's table in the journal. Called from one thread, so that rows enter in the order of the questions; in
        what order within one, is `pipeline.host.order`'s to say."""
        with self._fatal():
            order = asking_order(rows, self._columns, longest_first=longest_first)
            self._enter(_Question(ticket, slot, len(indices)), [indices[i] for i in order], rows.take(order))

    def _enter(self, question: _Question, indices: Sequence[int], rows: pa.Table) -> None:
        self._questions[question.ticket] = question
        source = rows.select(self._columns.rendered)
        for start in range(0, len(indices), self._chunk_rows):
            chunk = indices[start : start + self._chunk_rows]
            self._slots.take(len(chunk))
            self._loop.announce(len(chunk))
            rendered = self._renderers.submit(question.slot, chunk, source.slice(start, len(chunk)))
            self._taking_back.submit(self._take_back, question, chunk, rendered)

    def close(self) -> None:
        """Stops the threads; rows under way are not waited for."""
        self._taking_back.shutdown(wait=False, cancel_futures=True)
        self._loop.close()

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        with self._counting:
            self._spent[name] += time.perf_counter() - began

    def _take_back(self, question: _Question, indices: Sequence[int], rendered: "Future[list[Rendered]]") -> None:
        with self._fatal(), contextlib.suppress(CancelledError):  # cancelled: the worker is being closed
            rows = rendered.result()
            ended: list[tuple[_Asked, Outcome]] = []
            works = [
                work
                for index, row in zip(indices, rows, strict=True)
                if (work := self._to_ask(_asked(question, index, row), row, ended)) is not None
            ]
            self._end(ended)
            self._loop.submit(works, settled=len(rows))

    def _to_ask(self, asked: _Asked, row: Rendered, ended: list[tuple[_Asked, Outcome]]) -> Work | None:
        """What the engine is to be asked for a row; nothing if the row has failed, which is `ended` then, or if another
        row's answer will do."""
        if isinstance(row, Ready):
            known = self._memo.claim(row.key, asked) if self._memo is not None and row.key is not None else True
            if known is True:
                return Work(asked.question.slot, asked.row, row.prepared, asked)
            if isinstance(known, Known):
                ended.append(self._shared(asked, known))
        elif isinstance(row, Recalled):
            ended.append(self._shared(asked, row.known))
        else:
            ended.append((asked, Outcome(row)))
        return None

    def _done(self, results: list[tuple[Work, Completion | Failure]]) -> None:
        """Ends rows that were asked, and those that wait for the same answers."""
        ended: list[tuple[_Asked, Outcome]] = []
        for work, result in results:
            asked = work.asked
            if self._memo is not None and asked.key is not None:
                known: Known | Failure
                if isinstance(result, Completion):
                    known = Known(result, asked.request_sha256, self._run_id)
                else:
                    known = result
                ended.extend(self._shared(waiter, known) for waiter in self._memo.settle(asked.key, known))
            ended.append((asked, Outcome(result, asked.request_sha256, asked.sampling_sha256, None, asked.key)))
        self._end(ended)

    def _shared(self, waiter: _Asked, known: Known | Failure) -> tuple[_Asked, Outcome]:
        with self._counting:
            self._spent["rows_reused"] += 1
        if isinstance(known, Failure):
            return waiter, Outcome(known, None, waiter.sampling_sha256)
        return waiter, Outcome(known.completion, known.request_sha256, waiter.sampling_sha256, known.run_id, waiter.key)

    def _end(self, ended: list[tuple[_Asked, Outcome]]) -> None:
        for asked, outcome in ended:
            self._journal.mark(asked.question.slot, asked.row, Phase.IDLE)
            if asked.question.end(asked.row, outcome):
                self._wake.set()
        self._slots.give(len(ended))

    def _died(self, death: BaseException) -> None:
        self._flush()  # what was answered before stays answered
        self._on_death(death)

    def _flush_always(self) -> None:
        with self._fatal():
            while True:
                self._wake.wait(FLUSH_S)
                self._wake.clear()
                self._flush()

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """What goes wrong inside is the engine's death: a thread less would leave rows waiting for ever."""
        try:
            yield
        except Exception as e:
            self._on_death(e)

    def _flush(self) -> None:
        with self._flushing:
            for ticket, question in list(self._questions.items()):
                ended, is_whole = question.take_ended()
                if ended:
                    with self._timed("parse_s"):
                        piece = self._pieces.make(question.slot, ended)
                    self._emit(ticket, piece)
                if is_whole:
                    del self._questions[ticket]

    def _mark_parsing(self, slot: int, index: int, is_active: bool) -> None:
        self._journal.mark(slot, index, Phase.PARSE if is_active else Phase.IDLE)
