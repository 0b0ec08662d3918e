"""Reads shards as Ray Data blocks: one read task and one block a bundle of shards, only the columns that are needed.

Each row carries where it came from in columns that begin with `__herd_`. A file that is no longer the planned one gives
no rows: its shards are reported to the ledger and the run goes on with the others.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from pipeline.config import StorageConfig
from pipeline.errors import HerdError, InputChangedError
from pipeline.ipc import from_ipc, to_ipc
from pipeline.parquet import GarbledError, from_parquet
from pipeline.plan import Shard, shards_of
from pipeline.storage import FileInfo, Store

ORIGIN = pa.schema(
    [
        ("__herd_shard", pa.int32()),
        ("__herd_uri", pa.dictionary(pa.int32(), pa.string())),
        ("__herd_etag", pa.dictionary(pa.int32(), pa.string())),
        ("__herd_row_group", pa.int32()),
        ("__herd_row", pa.int64()),
    ]
)
"""The columns that a block has besides the input's own. `__herd_row` counts from 0 within the row group."""

CACHED_ROW_GROUP_BYTES = 512 * 2**20


def read_shard(shard: Shard, schema: pa.Schema, storage: StorageConfig) -> pa.Table:
    """The shard's rows with the columns of `schema`, then `ORIGIN`.

    Raises:
        InputChangedError: the file's size or ETag differs from the plan's, or it can no longer be read as planned.
        StorageError: the file is out of reach.
    """
    store = Store(shard.input_uri, storage, retry_s=storage.retry_s)
    check_unchanged(shard, store.stat(shard.input_uri))
    is_large = shard.num_bytes > CACHED_ROW_GROUP_BYTES
    read = _read_row_group if is_large else _cached_row_group
    group = read(shard.input_uri, shard.input_etag, shard.row_group, tuple(schema.names), storage)
    table = group.slice(shard.first_row, shard.num_rows)
    if table.num_rows != shard.num_rows:
        raise InputChangedError(
            f"Row group {shard.row_group} has fewer rows than planned", where=shard.input_uri, todo=_ADVICE
        )
    return with_origin(table, shard)


_ADVICE = "Put the planned file back and resume, or run the job on a new output."


def check_unchanged(shard: Shard, now: FileInfo) -> None:
    """Raises `InputChangedError` unless the file is the planned one."""
    if (now.size, now.etag) != (shard.input_size, shard.input_etag):
        raise InputChangedError(
            f"The input file changed since it was planned: {shard.input_size:,} bytes, ETag {shard.input_etag} then; "
            f"{now.size:,} bytes, ETag {now.etag} now",
            where=shard.input_uri,
            todo=_ADVICE,
        )


def _read_row_group(uri: str, etag: str, number: int, columns: tuple[str, ...], storage: StorageConfig) -> pa.Table:
    def read(file: pq.ParquetFile) -> pa.Table:
        return _without_dictionaries(file.read_row_group(number, columns=list(columns)).select(list(columns)))

    try:
        return from_parquet(Store(uri, storage, retry_s=storage.retry_s), uri, read, block_size=8 * 2**20)
    except GarbledError as e:
        raise InputChangedError(
            f"Row group {number} cannot be read: {e}", where=uri, todo="Write the file again."
        ) from None


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """The table with dictionary columns as plain values: outputs hold none, see `pipeline.output`."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(i, field.name, table[i].cast(field.type.value_type))
    return table


# A row group that holds several shards is decoded once by each reading process instead of once a shard.
_cached_row_group = lru_cache(maxsize=1)(_read_row_group)


def with_origin(table: pa.Table, shard: Shard) -> pa.Table:
    rows = table.num_rows

    def repeated(text: str) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([text], pa.string()))

    values = [
        pa.repeat(pa.scalar(shard.shard, pa.int32()), rows),
        repeated(shard.input_uri),
        repeated(shard.input_etag),
        pa.repeat(pa.scalar(shard.row_group, pa.int32()), rows),
        pa.array(range(shard.first_row, shard.first_row + rows), pa.int64()),
    ]
    for field, column in zip(ORIGIN, values, strict=True):
        table = table.append_column(field, column)
    return table


class ShardSource(Datasource):  # type: ignore[misc]
    """Bundles of shards, see `pipeline.bundles`, as a Ray Data source."""

    def __init__(
        self,
        bundles: list[pa.Table],
        schema: pa.Schema,
        storage: StorageConfig,
        ledger: Any,
        rows: Mapping[int, frozenset[int]],
    ) -> None:
        """`rows` names, by shard, the only rows to read; a shard that it does not name is read whole."""
        self._bundles, self._schema, self._storage, self._ledger, self._rows = bundles, schema, storage, ledger, rows

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int | None:
        return sum(_sum(bundle, "num_bytes") for bundle in self._bundles)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [self._task(bundle) for bundle in self._bundles]

    def _task(self, bundle: pa.Table) -> ReadTask:
        rows = {shard: self._rows[shard] for shard in bundle["shard"].to_pylist() if shard in self._rows}
        read = partial(_read_block, to_ipc(bundle), self._schema, self._storage, self._ledger, rows)
        size = {"num_rows": _sum(bundle, "num_rows"), "size_bytes": _sum(bundle, "num_bytes")}
        return ReadTask(read, BlockMetadata(**size, input_files=None, exec_stats=None))


def _sum(bundle: pa.Table, column: str) -> int:
    return int(pc.sum(bundle[column]).as_py())


def _read_block(
    bundle: bytes, schema: pa.Schema, storage: StorageConfig, ledger: Any, rows: Mapping[int, frozenset[int]]
) -> Iterable[pa.Table]:
    tables = [pa.schema([*schema, *ORIGIN]).empty_table()]
    started = time.perf_counter()
    try:
        for shard in shards_of(from_ipc(bundle)):
            try:
                table = read_shard(shard, schema, storage)
            except InputChangedError as e:
                ray.get(ledger.shard_failed.remote(shard.shard, str(e)))
                continue
            if shard.shard in rows:
                asked = pa.array(sorted(rows[shard.shard]), pa.int64())
                table = table.filter(pc.is_in(table["__herd_row"], asked))
            tables.append(table)
    except HerdError as e:
        ray.get(ledger.run_failed.remote(e))
        raise
    block = pa.concat_tables(tables).unify_dictionaries()
    ledger.read.remote(time.perf_counter() - started, block.num_rows, block.nbytes)
    yield block


def shards_in(block: pa.Table) -> Iterator[pa.Table]:
    """The rows of each shard in a block, in order. A shard of which no row is asked is not seen."""
    numbers = block["__herd_shard"].to_numpy()
    begins = np.flatnonzero(np.diff(numbers, prepend=-1))
    for begin, end in zip(begins, [*begins[1:], len(numbers)], strict=True):
        yield block.slice(begin, end - begin)
