"""The engine actor of a Ray Data pool: starts one engine, takes whole shards, several at a time.

A dead engine ends the actor's process, because Ray restarts a process and gives its shards back; the ledger's count of
attempts keeps that from going on for ever.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.engine.base import Engine
from pipeline.engine.echo import EchoEngine
from pipeline.errors import EngineStartError, HerdError
from pipeline.model import ModelRef, localise
from pipeline.worker import EngineDiedError, ShardWorker


@dataclass(frozen=True)
class EngineJob:
    """All that an engine actor needs to know of the run."""

    config: RunConfig
    columns: Columns
    model: ModelRef
    run_id: str


def start_engine(job: EngineJob) -> Engine:
    """The job's engine, ready.

    Raises:
        HerdError: it cannot start, and why.
    """
    if job.config.engine.kind == "echo":
        return EchoEngine(job.config)
    from pipeline.engine.vllm import VllmEngine

    return VllmEngine(job.config, job.model, localise(job.model.location, job.config.input.storage))


class EngineActor:
    """A callable class for `Dataset.map_batches`."""

    def __init__(self, job: EngineJob, ledger: Any) -> None:
        self._ledger = ledger
        started = time.perf_counter()
        starts = ray.get(ledger.engine_starting.remote())
        limit = job.config.pool.ceiling + job.config.limits.max_shard_attempts
        try:
            if starts > limit:
                raise EngineStartError(
                    f"Engines were started {starts - 1} times in a row and died before they were ready"
                )
            engine = start_engine(job)
        except Exception as e:  # whatever keeps an engine from starting is the run's end, and its reason
            ray.get(ledger.engine_failed.remote(str(e) if isinstance(e, HerdError) else f"{type(e).__name__}: {e}"))
            raise
        self._name = f"{engine.info.name} #{ray.get_runtime_context().get_actor_id()[:8]}"
        self._worker = ShardWorker(job.config, job.columns, job.model, engine, self._name, job.run_id)
        self._threads = ThreadPoolExecutor(job.config.pool.shards_in_flight, thread_name_prefix="herd-shard")
        facts = {
            **engine.info.facts,
            "node": ray.get_runtime_context().get_node_id()[:12],
            "start_s": round(time.perf_counter() - started, 2),
        }
        ray.get(ledger.engine_ready.remote(self._name, facts))

    async def __call__(self, block: pa.Table) -> AsyncIterator[pa.Table]:
        out = await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, block)
        if out is not None:
            yield out

    def _answer(self, block: pa.Table) -> pa.Table | None:
        attempt = ray.get(self._ledger.begin.remote(block["__herd_shard"][0].as_py()))
        if attempt is None:
            return None
        try:
            answered = self._worker.answer(block, attempt)
            self._ledger.engine_figures.remote(self._name, self._worker.figures())
            return answered
        except EngineDiedError as e:
            ray.get(self._ledger.engine_died.remote(self._name, str(e)))
            os._exit(1)
