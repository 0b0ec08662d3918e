"""Answers whole shards on one engine: renders, prepares, asks, parses, and accounts for every row.

Three kinds of threads meet here. A pool renders chunks of rows (templates, image fetch and decode); one thread prepares
them for the engine (chat template, tokens, image preprocessing), in order; the engine's loop steps. Rows in flight are
bounded over all shards of the engine, so that decoded images wait for the engine and not the other way round.
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa

from pipeline import answers
from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.engine.base import Engine
from pipeline.engine.loop import EngineLoop, Work
from pipeline.errors import RowError, Stage
from pipeline.model import ModelRef
from pipeline.output import LINEAGE, QUARANTINED_FIELDS, SECONDS, answered_fields
from pipeline.render.rows import Renderer
from pipeline.request import Completion, Failure, Outcome, Request, canonical_sha256

CHUNK_ROWS = 16

Given = TypeVar("Given")
Made = TypeVar("Made")


def default_concurrency(columns: Columns) -> int:
    """Rendering threads where the job does not say; see `RenderConfig.concurrency`."""
    return 16 if columns.may_fetch else max(1, min(8, len(os.sched_getaffinity(0)) // 2))


class EngineDiedError(Exception):
    """The engine died while rows of this shard were under way."""


def _guarded(act: Callable[[Given], Made], given: Given) -> Made | Failure:
    """What `act` makes of one row, or how it failed: one odd row must not end the run, whatever it made our code do."""
    try:
        return act(given)
    except RowError as e:
        return Failure.of(e)
    except Exception as e:
        return Failure.of(RowError(Stage.RENDER, "unexpected", f"{type(e).__name__}: {e}"))


class Slots:
    """A counting gate: how many rows may be between rendering and their answer. Once opened it holds nobody."""

    def __init__(self, size: int) -> None:
        self._free, self._open = size, False
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._free >= count)
            self._free -= count

    def give(self, count: int) -> None:
        with self._changed:
            self._free += count
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()


class _Pending:
    """The outcomes of a shard's rows as they arrive. Results come in from the stepping and the preparing thread."""

    def __init__(self, num_rows: int, slots: Slots) -> None:
        self.outcomes: list[Outcome | None] = [None] * num_rows
        self.asked: list[tuple[str, dict[str, Any]] | None] = [None] * num_rows
        self._left, self._slots = num_rows, slots
        self._lock = threading.Lock()
        self.whole = threading.Event()
        self.death: BaseException | None = None

    def done(self, index: int, result: Completion | Failure) -> None:
        sha, sampling = self.asked[index] or (None, None)
        self.outcomes[index] = Outcome(result, sha, sampling)
        self._slots.give(1)
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self.whole.set()

    def fail(self, death: BaseException) -> None:
        self.death = death
        self.whole.set()


class ShardWorker:
    """One engine and the threads around it. `answer` may be called from several threads, one shard each."""

    def __init__(
        self, config: RunConfig, columns: Columns, model: ModelRef, engine: Engine, engine_name: str, run_id: str
    ) -> None:
        self._config, self._columns, self._model, self._engine = config, columns, model, engine
        self._engine_name, self._run_id = engine_name, run_id
        self._renderer = Renderer(config)
        self._default_sampling_sha256 = canonical_sha256(self._renderer.default_sampling)
        self._parse = answers.parser(config.answer)
        self._answer_type = answers.answer_type(config.answer)
        self._answer_is_json = answers.is_json_text(config.answer)
        concurrency = config.render.concurrency or default_concurrency(columns)
        self._render_pool = ThreadPoolExecutor(concurrency, thread_name_prefix="herd-render")
        self._prepare_thread = ThreadPoolExecutor(1, thread_name_prefix="herd-prepare")
        self._slots = Slots(max(2 * engine.info.max_num_seqs, 2 * CHUNK_ROWS))
        self._turn = threading.Lock()
        self._under_way: set[_Pending] = set()
        self._registry = threading.Lock()
        self._loop = EngineLoop(engine, self._on_death)

    def figures(self) -> dict[str, float]:
        """The engine's window so far: its seconds, the rows answered in it, and the seconds of it spent stepping."""
        window = self._loop.window
        return {"window_s": round(window.seconds, 3), "rows": window.rows, "busy_s": round(window.busy_s, 3)}

    def close(self) -> None:
        """Stops the threads; shards under way are not waited for."""
        self._render_pool.shutdown(wait=False, cancel_futures=True)
        self._prepare_thread.shutdown(wait=False, cancel_futures=True)
        self._loop.close()

    def answer(self, block: pa.Table, attempt: int) -> pa.Table:
        """The shard's rows in order, with what `Output.commit` takes.

        `block` has the input columns and `pipeline.source.ORIGIN`; `attempt` counts from 1.

        Raises:
            EngineDiedError: the engine died; no row of the shard is lost or answered.
        """
        started = time.perf_counter()
        pending = _Pending(block.num_rows, self._slots)
        with self._registry:
            self._under_way.add(pending)
        try:
            with self._turn:  # rows enter shard by shard, so that the oldest shard is whole first
                self._enter(block, pending)
            pending.whole.wait()
        finally:
            with self._registry:
                self._under_way.discard(pending)
        if pending.death is not None:
            raise EngineDiedError(f"{type(pending.death).__name__}: {pending.death}") from pending.death
        outcomes = [outcome for outcome in pending.outcomes if outcome is not None]
        assert len(outcomes) == block.num_rows
        return self._table(block, outcomes, attempt, time.perf_counter() - started)

    def _enter(self, block: pa.Table, pending: _Pending) -> None:
        source = block.select(self._columns.rendered)
        for start in range(0, block.num_rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, block.num_rows - start)
            self._slots.take(count)
            if pending.death is not None:
                return
            self._loop.announce(count)
            # a table without columns has no rows to list; a prompt may well use no column at all
            rows = source.slice(start, count).to_pylist() if source.num_columns else [{}] * count
            rendered = self._render_pool.submit(self._render, rows)
            self._prepare_thread.submit(self._prepare, rendered, start, pending)

    def _render(self, rows: Sequence[dict[str, Any]]) -> list[Request | Failure]:
        return [_guarded(self._renderer.render, row) for row in rows]

    def _prepare(self, rendered: "Future[list[Request | Failure]]", start: int, pending: _Pending) -> None:
        try:
            requests = rendered.result()
        except CancelledError:
            return  # the worker is being closed
        works = []
        for index, request in enumerate(requests, start):
            result = request if isinstance(request, Failure) else _guarded(self._engine.prepare, request)
            if isinstance(result, Failure):
                pending.done(index, result)
                continue
            assert isinstance(request, Request)
            pending.asked[index] = (result.request_sha256, request.sampling)
            works.append(Work(index, result, pending.done))
        self._loop.submit(works, settled=len(requests))

    def _on_death(self, death: BaseException) -> None:
        with self._registry:
            for pending in self._under_way:
                pending.fail(death)
        self._slots.open()

    def _table(self, block: pa.Table, outcomes: list[Outcome], attempt: int, seconds: float) -> pa.Table:
        ended = self._parsed(outcomes)
        completions = [c for c, _, _, _ in ended]
        texts = [t for _, t, _, _ in ended]
        failures = [f for _, _, _, f in ended]
        columns: dict[str, Any] = {
            "response": texts,
            "finish_reason": [c.finish_reason if c else None for c in completions],
            "prompt_tokens": [c.prompt_tokens if c else None for c in completions],
            "output_tokens": [len(c.token_ids) if c else None for c in completions],
            "answer": [a for _, _, a, _ in ended],
            "stage": [str(f.stage) if f else None for f in failures],
            "error_type": [f.error_type if f else None for f in failures],
            "message": [f.message if f else None for f in failures],
            "attempts": [attempt if f else None for f in failures],
        }
        table = block.select(list(self._columns.carry))
        for field in [*answered_fields(self._answer_type), *QUARANTINED_FIELDS]:
            table = table.append_column(field, pa.array(columns[field.name], field.type))
        table = table.append_column("lineage", self._lineage(block, outcomes, attempt))
        return table.append_column(SECONDS, pa.repeat(pa.scalar(seconds, pa.float64()), block.num_rows))

    def _parsed(self, outcomes: list[Outcome]) -> list[tuple[Completion | None, str | None, Any, Failure | None]]:
        """Completion, text, answer and failure of each row; a row has either an answer or a failure."""
        completions = [o.result for o in outcomes if isinstance(o.result, Completion)]
        texts = iter(self._engine.texts(completions))
        out: list[tuple[Completion | None, str | None, Any, Failure | None]] = []
        for outcome in outcomes:
            if isinstance(outcome.result, Failure):
                out.append((None, None, None, outcome.result))
                continue
            text = next(texts)
            try:
                value = self._parse(text, outcome.result.finish_reason)
                out.append((outcome.result, text, self._to_arrow(value), None))
            except RowError as e:
                out.append((None, None, None, Failure.of(e)))
        return out

    def _to_arrow(self, value: Any) -> Any:
        return answers.to_arrow_value(value, self._answer_type, as_json=self._answer_is_json)

    def _lineage(self, block: pa.Table, outcomes: list[Outcome], attempt: int) -> pa.StructArray:
        rows = block.num_rows

        def origin(name: str, kind: pa.DataType) -> pa.Array:
            return block[f"__herd_{name}"].combine_chunks().cast(kind)

        def same(value: Any, kind: pa.DataType) -> pa.Array:
            return pa.repeat(pa.scalar(value, kind), rows)

        values = {
            "run_id": same(self._run_id, pa.string()),
            "shard": origin("shard", pa.int32()),
            "input_uri": origin("uri", pa.string()),
            "input_etag": origin("etag", pa.string()),
            "row_group": origin("row_group", pa.int32()),
            "row": origin("row", pa.int64()),
            "request_sha256": pa.array([o.request_sha256 for o in outcomes], pa.string()),
            "model": same(self._model.name, pa.string()),
            "weights_digest": same(self._model.weights_digest, pa.string()),
            "sampling_sha256": pa.array([self._sampling_digest(o.sampling) for o in outcomes], pa.string()),
            "engine": same(self._engine_name, pa.string()),
            "attempt": same(attempt, pa.int32()),
            "created_at": same(datetime.now(UTC), pa.timestamp("us", tz="UTC")),
        }
        return pa.StructArray.from_arrays([values[f.name] for f in LINEAGE], fields=list(LINEAGE))

    def _sampling_digest(self, sampling: dict[str, Any] | None) -> str | None:
        if sampling is None:
            return None
        is_default = sampling is self._renderer.default_sampling
        return self._default_sampling_sha256 if is_default else canonical_sha256(sampling)
