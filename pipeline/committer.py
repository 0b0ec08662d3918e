"""Commits answered shards for a run, wherever in the cluster they were answered."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.accounts import Answered, account, history
from pipeline.host.process import EngineJob
from pipeline.lease import Token
from pipeline.output import CommitRecord, Output
from pipeline.storage import Store


@dataclass(frozen=True)
class ActorJob:
    """All that an actor needs to know of the run."""

    engine: EngineJob
    run_id: str
    output_uri: str
    token: Token
    max_rows: int
    """Rows of the largest shard."""
    merges: bool
    """Blocks hold only some rows of shards that are committed already, and replace these rows."""
    tail: frozenset[int]
    """The shards that come last: of these the longest rows are asked first."""


class Committer:
    """Writes shards into a run's output. Safe to use from several threads."""

    def __init__(self, job: ActorJob) -> None:
        storage = job.engine.config.output.storage
        self._job = job
        self._output = Output(job.output_uri, Store(job.output_uri, storage, retry_s=storage.retry_s))

    def commit(self, block: pa.Table, answered: Answered, attempt: int, engine: str) -> CommitRecord:
        """Commits the rows of a shard as they were answered. Raises as `Output.commit`."""
        job = self._job
        whole = account(
            block,
            answered,
            attempt,
            columns=job.engine.columns,
            model=job.engine.model,
            run_id=job.run_id,
            engine=engine,
        )
        commit = self._output.merge if job.merges else self._output.commit
        return commit(whole, job.run_id, job.token, history=history(block, answered, attempt))
