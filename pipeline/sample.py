"""Some rows of the input, spread over its files and few of its row groups: which, by a seed, and how they are read.

Choosing is pure and goes by the plan. All rows, laid end to end, are cut into as many equal stretches as row groups are to
be read; in each a random row names its row group, of which random rows are taken. So every row has about the same chance.
Of a heavy row group only the first rows are read, as many as its share of `MAX_BYTES` holds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError
from pipeline.parquet import GarbledError, from_parquet
from pipeline.storage import Store

MIN_GROUPS = 16
"""Row groups that are read at least, where there are so many."""
MAX_BYTES = 256 * 2**20
"""Bytes of rows, uncompressed, that are gone through at most, unless every row is asked for."""
BATCH_BYTES = 4 * 2**20
READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Slice:
    """The sampled rows of one row group, counted from 0 within it, ascending."""

    input_uri: str
    row_group: int
    rows: tuple[int, ...]
    row_bytes: float
    """Bytes of a row on average, uncompressed."""
    is_head: bool = False
    """Whether they are from the first rows of the group only."""


def choose(plan: pa.Table, num_rows: int, *, seed: int = 0, max_bytes: int = MAX_BYTES) -> list[Slice]:
    """The slices to read for about `num_rows` rows of a plan (`pipeline.plan.SCHEMA`), in plan order; all rows if the plan
    has no more. The same seed chooses the same rows."""
    first, rows_of_shard, bytes_of_shard = (plan[c].to_numpy() for c in ("first_row", "num_rows", "num_bytes"))
    begins = np.flatnonzero(first == 0)
    if num_rows <= 0 or not len(begins):
        return []
    rows, weight = np.add.reduceat(rows_of_shard, begins), np.add.reduceat(bytes_of_shard, begins)
    total = int(rows.sum())
    if num_rows >= total:
        wanted, reach = rows, rows
        groups = np.arange(len(rows))
    else:
        rng = np.random.default_rng(seed)
        stretches = min(len(rows), num_rows, max(MIN_GROUPS, -(-3 * num_rows // max(2 * int(rows.mean()), 1))))
        at = (np.arange(stretches) + rng.random(stretches)) * total / stretches
        groups, times = np.unique(np.searchsorted(np.cumsum(rows), at, side="right"), return_counts=True)
        rows, weight = rows[groups], weight[groups]
        wanted = np.minimum(rows, -(-num_rows * times // stretches))
        affordable = (max_bytes / len(groups) / np.maximum(weight / rows, 1)).astype(np.int64)
        reach = np.minimum(rows, np.maximum(wanted, affordable))
    out = []
    for n, group in enumerate(groups):
        is_all = wanted[n] == rows[n]
        picked = np.arange(rows[n]) if is_all else np.sort(rng.choice(reach[n], wanted[n], replace=False))
        shard = int(begins[group])
        uri, number = plan["input_uri"][shard].as_py(), plan["row_group"][shard].as_py()
        is_head = bool(reach[n] < rows[n])
        out.append(Slice(uri, number, tuple(picked.tolist()), float(weight[n] / rows[n]), is_head))
    return out


def read(piece: Slice, columns: list[str], storage: StorageConfig) -> list[dict[str, Any]]:
    """The rows of a slice with these columns. Reads no further than its last row.

    Raises:
        ConfigError: the row group cannot be decoded.
        StorageError: the file is out of reach.
    """
    if not columns:
        return [{} for _ in piece.rows]
    batch_rows = int(max(1, min(1024, BATCH_BYTES / max(piece.row_bytes, 1))))

    def rows(file: pq.ParquetFile) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        start, wanted = 0, np.array(piece.rows)
        for batch in file.iter_batches(batch_rows, row_groups=[piece.row_group], columns=columns, use_threads=False):
            here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
            if len(here):
                out += batch.take(pa.array(here)).to_pylist()
            start += batch.num_rows
            if start > wanted[-1]:
                break
        return out

    try:
        return from_parquet(Store(piece.input_uri, storage), piece.input_uri, rows, buffer_size=READ_BYTES)
    except GarbledError as e:
        raise ConfigError(
            f"Row group {piece.row_group} cannot be read: {e}", where=piece.input_uri, todo="Write the file again."
        ) from None
