"""Answers whole shards from the answer cache, before any engine is started: what is known of every row needs none.

    ShardSource -> map_batches(Recaller)

A shard of which a single row is to be asked is left for an engine, whose own look into the cache spares the others. Rows
are rendered here as they are beside an engine, and those that cannot be are quarantined.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray

from pipeline.accounts import Answered
from pipeline.cache import AnswerCache
from pipeline.committer import ActorJob, Committer
from pipeline.errors import HerdError
from pipeline.host.pieces import Pieces
from pipeline.host.rendering import as_rows, default_concurrency, guarded
from pipeline.render.rows import Renderer
from pipeline.request import Failure, Outcome
from pipeline.source import shards_in

ENGINE = "cache"
"""What stands for the engine in the records of shards that are recalled."""
FIRST_ROWS = 8
"""Rows that are looked up first, so that a shard nobody has seen costs little."""


class Recaller:
    """A callable class for `Dataset.map_batches`: a block with the rows of some shards in, the numbers of those that were
    committed from the cache out."""

    def __init__(self, job: ActorJob, ledger: Any) -> None:
        self._committer, self._ledger = Committer(job), ledger
        self._node = ray.get_runtime_context().get_node_id()
        config = job.engine.config
        self._cache = AnswerCache(config, job.engine.model)
        self._cache.read_index()
        self._renderer = Renderer(config)
        self._columns = job.engine.columns
        self._pieces = Pieces(config, texts=lambda completions: [c.text or "" for c in completions])
        self._pool = ThreadPoolExecutor(config.render.concurrency or default_concurrency(self._columns, 4))

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        try:
            done = [rows for rows in shards_in(block) if self._carry(rows)]
        except HerdError as e:
            ray.get(self._ledger.run_failed.remote(e))
            raise
        yield pa.table({"shard": pa.array([rows["__herd_shard"][0].as_py() for rows in done], pa.int32())})

    def _carry(self, block: pa.Table) -> bool:
        """Commits a shard if every row of it is known, or cannot be asked; says whether it did."""
        began = time.perf_counter()
        rows = as_rows(block.select(self._columns.rendered), block.num_rows)
        outcomes: list[Outcome] = []
        for some in (rows[:FIRST_ROWS], rows[FIRST_ROWS:]):
            for outcome in self._pool.map(self._outcome, some):
                if outcome is None:
                    return False
                outcomes.append(outcome)
        pieces = pa.Table.from_batches([self._pieces.make(0, list(enumerate(outcomes)))]).drop_columns(["index"])
        _, attempt = ray.get(self._ledger.begin.remote(block["__herd_shard"][0].as_py(), self._node))
        if attempt is None:
            return False
        answered = Answered(pieces, [1] * block.num_rows, [], time.perf_counter() - began)
        ray.get(self._ledger.committed.remote(self._committer.commit(block, answered, attempt, ENGINE)))
        return True

    def _outcome(self, row: dict[str, Any]) -> Outcome | None:
        """How a row ends without an engine; None if it takes one."""
        request = guarded(self._renderer.render, row)
        if isinstance(request, Failure):
            return Outcome(request)
        known = self._cache.recall(request.key) if request.sampling.is_repeatable else None
        if known is None:
            return None
        return Outcome(known.completion, known.request_sha256, request.sampling.sha256, known.run_id, request.key)
