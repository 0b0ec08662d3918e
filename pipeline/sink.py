"""Writes and commits shards from Ray Data: one write task a shard, nothing shared between them but the output folder."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from ray.data import Datasink

from pipeline.config import OutputConfig
from pipeline.output import Output
from pipeline.storage import Store


class CommitSink(Datasink[None]):  # type: ignore[misc]
    """Commits each block as the shard it is, and tells the ledger."""

    def __init__(self, config: OutputConfig, run_id: str, resumed: bool, ledger: Any) -> None:
        self._config, self._run_id, self._resumed, self._ledger = config, run_id, resumed, ledger

    def get_name(self) -> str:
        return "Commit"

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> None:
        output = Output(self._config.uri, Store(self._config.uri, self._config.storage))
        for block in blocks:
            if block.num_rows == 0:
                continue
            retried = self._resumed or block["lineage"].combine_chunks().field("attempt")[0].as_py() > 1
            record = output.commit(block, self._run_id, may_have_leftovers=retried)
            self._ledger.committed.remote(record)
