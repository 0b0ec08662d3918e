"""The engine actor of a Ray Data pool: takes bundles of shards, several at a time, has their shards answered one after
the other, and commits each.

The engine itself is a process of the actor's (`pipeline.host`), so that what kills an engine leaves the actor, its shards
and the answers of theirs alone. What kills the actor is for Ray, which starts another and gives it the shards that were
not committed.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray

from pipeline.accounts import Answered
from pipeline.cache import AnswerCache
from pipeline.committer import ActorJob, Committer
from pipeline.engine.base import EngineInfo
from pipeline.errors import HerdError
from pipeline.host.host import EngineHost, Events
from pipeline.ledger import Permit
from pipeline.metrics import Meter
from pipeline.output import CommitRecord
from pipeline.source import shards_in

COMMITTING = 2
"""Shards beyond those on the engine that may be in the hands of the commit, so that the engine never waits for it."""
ASK_AGAIN_S = 0.5
TELL_S = 0.5
"""Seconds between two words to the ledger about the engine's figures. A commit brings them along."""
COMMITTED = pa.schema([("shard", pa.int32())])


class EngineActor:
    """A callable class for `Dataset.map_batches`: a block with the rows of some shards in, the numbers of those that were
    committed out."""

    def __init__(self, job: ActorJob, ledger: Any) -> None:
        self._job, self._ledger = job, ledger
        context = ray.get_runtime_context()
        self._node, self._id = context.get_node_id(), context.get_actor_id()[:8]
        self._name = ""
        config = job.engine.config
        self._committer = Committer(job)
        self._cache = AnswerCache(config, job.engine.model) if config.cache.uri else None
        self._seats = threading.Semaphore(config.pool.shards_in_flight)
        self._busy = 0
        self._figures: dict[str, float] = {"write_s": 0.0}
        self._told = 0.0
        self._deaths = 0
        self._counting = threading.Lock()
        self._meter = Meter(job.run_id)
        self._threads = ThreadPoolExecutor(config.pool.shards_in_flight + COMMITTING, thread_name_prefix="herd-shard")
        engine = replace(
            job.engine,
            devices=tuple(context.get_accelerator_ids().get("GPU", ())),
            node=self._node,
            address=context.gcs_address,
        )
        if engine.gang is None:
            self._placed([self._node])
        events = Events(
            placed=self._placed,
            ready=self._ready,
            figures=self._tell,
            died=self._died,
            noted=lambda message: ledger.noted.remote(f"{self._name}: {message}"),
        )
        try:
            self._host = EngineHost(engine, max_rows=job.max_rows, events=events)
        except HerdError as e:
            ray.get(ledger.run_failed.remote(e))
            raise

    def _placed(self, nodes: Sequence[str]) -> None:
        self._ledger.engine_placed.remote(self._id, sorted(set(nodes)))

    def _ready(self, info: EngineInfo, seconds: float) -> None:
        self._name = f"{info.name} #{self._id}"
        facts = {**info.facts, "node": self._node[:12], "start_s": round(seconds, 2)}
        ray.get(self._ledger.engine_ready.remote(self._name, facts))

    def _tell(self, figures: dict[str, float]) -> None:
        with self._counting:
            self._figures.update(figures)
            if time.monotonic() - self._told < TELL_S:
                return
            self._told = time.monotonic()
            known = dict(self._figures)
        self._meter.take(self._name, known)
        self._ledger.engine_figures.remote(self._name, known)

    def _died(self, error_type: str, message: str) -> None:
        self._deaths += 1
        self._meter.take(self._name, {"deaths": self._deaths})
        self._ledger.engine_died.remote(self._name, error_type, message)

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        loop = asyncio.get_running_loop()
        carried = [await loop.run_in_executor(self._threads, self._carry, rows) for rows in shards_in(block)]
        yield pa.table({"shard": [shard for shard in carried if shard is not None]}, COMMITTED)

    def _carry(self, block: pa.Table) -> int | None:
        """Answers and commits one shard; None if it may not be begun."""
        shard = int(block["__herd_shard"][0].as_py())
        with ExitStack() as seat:
            seat.enter_context(self._seats)  # a shard that only waits for the engine is not begun
            attempt = self._begin(shard)
            if attempt is None:
                return None
            try:
                rows = block.select(list(dict.fromkeys([*self._job.engine.columns.rendered, "__herd_row"])))
                answered = self._host.answer(rows, longest_first=shard in self._job.tail)
                seat.close()  # the engine does not wait for this one's commit
                record, figures = self._commit(block, answered, attempt)
                self._meter.take(self._name, figures)
                ray.get(self._ledger.committed.remote(record, self._name, figures))
            except HerdError as e:
                ray.get(self._ledger.run_failed.remote(e))
                raise
            finally:
                with self._counting:
                    self._busy -= 1
        return shard

    def _commit(self, block: pa.Table, answered: Answered, attempt: int) -> tuple[CommitRecord, dict[str, float]]:
        """Commits a shard; returns its record and the engine's figures, this commit included."""
        began = time.perf_counter()
        record = self._committer.commit(block, answered, attempt, self._name)
        if self._cache is not None:
            try:
                self._cache.keep(answered.pieces, self._job.run_id)
            except HerdError as e:  # the answers stand in the output; the next run asks again
                self._ledger.noted.remote(f"{self._name}: the answer cache took nothing: {e}")
        with self._counting:
            self._figures["write_s"] = round(self._figures["write_s"] + time.perf_counter() - began, 4)
            return record, dict(self._figures)

    def _begin(self, shard: int) -> int | None:
        """The attempt's number once the shard may be begun. On a node that is being drained nothing may: when the last
        shard in flight is committed, this process ends, and Ray starts another elsewhere that gets what still waits."""
        while True:
            with self._counting:
                self._busy += 1
            permit, attempt = ray.get(self._ledger.begin.remote(shard, self._node))
            if permit is Permit.GO:
                return int(attempt)
            with self._counting:
                self._busy -= 1
                is_idle = self._busy == 0
            if permit is Permit.NEVER:
                return None
            if is_idle:
                os._exit(0)
            time.sleep(ASK_AGAIN_S)
