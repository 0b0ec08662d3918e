"""Writes and commits shards from Ray Data: one write task a shard, with nothing shared but the folder."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasink

from pipeline.config import StorageConfig
from pipeline.output import Output
from pipeline.storage import Store


class CommitSink(Datasink[None]):  # type: ignore[misc]
    """Commits each block as the shard it is, and tells the ledger. `merges`: blocks hold only some rows of shards that
    are committed already, and replace these rows."""

    def __init__(
        self, uri: str, storage: StorageConfig, run_id: str, ledger: Any, *, resumed: bool, merges: bool
    ) -> None:
        self._uri, self._storage, self._run_id, self._ledger = uri, storage, run_id, ledger
        self._resumed, self._merges = resumed, merges

    def get_name(self) -> str:
        return "Commit"

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        output = Output(self._uri, Store(self._uri, self._storage))
        for block in blocks:
            if block.num_rows == 0:
                continue
            if self._merges:
                record = output.merge(block, self._run_id)
            else:
                retried = self._resumed or block["lineage"].combine_chunks().field("attempt")[0].as_py() > 1
                record = output.commit(block, self._run_id, may_have_leftovers=retried)
            ray.get(self._ledger.committed.remote(record))
