"""A part of a plan, for a look before a large run: its first rows, or a sample spread over all files. Pure.

A sample is made of small contiguous slices, so that its shards are what shards always are: some rows of one row group, one
below the other. Only row groups that hold some of its rows are read.
"""

from collections.abc import Iterator
from random import Random

import numpy as np
import pyarrow as pa

from pipeline.config import InputConfig, SampleConfig
from pipeline.plan import SCHEMA

SLICE_ROWS = 8
"""Rows that a slice of a sample has at most: more would resemble each other, fewer would have more row groups read."""

Slices = list[tuple[int, int]]
"""Rows from a first one up to, and without, a last one; in order, and none twice."""


def part_of(table: pa.Table, config: InputConfig) -> pa.Table:
    """The rows of a plan (`plan.SCHEMA`) that the job asks for, as a plan; all of it if the job says nothing of them."""
    if config.limit is not None:
        return narrowed(table, [(0, config.limit)])
    return narrowed(table, sample_slices(file_rows(table), config.sample)) if config.sample else table


def narrowed(table: pa.Table, slices: Slices) -> pa.Table:
    """The plan of just these rows, which are counted over the whole plan, in its order. Bytes go by rows."""
    ends = np.cumsum(table["num_rows"].to_numpy())
    begins = ends - table["num_rows"].to_numpy()
    kept: list[tuple[int, int, int]] = []
    for first, last in slices:
        shard = int(np.searchsorted(ends, first, side="right"))
        while shard < len(ends) and begins[shard] < last:
            start, end = max(first, int(begins[shard])), min(last, int(ends[shard]))
            kept.append((shard, start - int(begins[shard]), end - start))
            shard += 1
    chosen, skipped, rows = (np.array([k[i] for k in kept], np.int64) for i in range(3))
    old = table.take(chosen)
    new = {
        "shard": pa.array(np.arange(len(chosen)), pa.int32()),
        "first_row": pa.array(old["first_row"].to_numpy() + skipped, pa.int64()),
        "num_rows": pa.array(rows, pa.int64()),
        "num_bytes": pa.array(old["num_bytes"].to_numpy() * rows // old["num_rows"].to_numpy(), pa.int64()),
    }
    return pa.table([new.get(name, old[name]) for name in SCHEMA.names], SCHEMA)


def file_rows(table: pa.Table) -> list[int]:
    """Rows of each file of a plan, in its order."""
    rows: list[int] = []
    last = None
    for uri, num_rows in zip(table["input_uri"].to_pylist(), table["num_rows"].to_pylist(), strict=True):
        if uri != last:
            rows.append(0)
            last = uri
        rows[-1] += num_rows
    return rows


def sample_slices(rows: list[int], sample: SampleConfig) -> Slices:
    """Slices that hold `sample.rows` rows (or all, where there are no more) of files with so many `rows` each.

    Each file gives at least one row where the sample has enough, else every n-th file gives one; the rest goes by rows. A
    file's share is cut into slices of at most `SLICE_ROWS`, one somewhere in each equal part of the file. The seed decides
    where. Equal arguments give equal slices, on any machine: only `Random.random` is used, which Python keeps as it is.
    """
    if sample.rows >= sum(rows):
        return [(0, sum(rows))]
    random = Random(sample.seed)  # noqa: S311 (a sample, no secret)
    begins = np.cumsum([0, *rows])
    return [
        (int(begins[file]) + first, int(begins[file]) + last)
        for file, share in enumerate(_shares(rows, sample.rows, random))
        for first, last in _spread(rows[file], share, random)
    ]


def _shares(rows: list[int], wanted: int, random: Random) -> list[int]:
    """How many rows each file gives."""
    files = len(rows)
    if wanted < files:
        first = random.random()
        chosen = {int((n + first) * files / wanted) for n in range(wanted)}
        return [int(file in chosen) for file in range(files)]
    spare, left = [n - 1 for n in rows], wanted - files
    parts = [divmod(left * n, sum(spare)) for n in spare]
    shares = [1 + whole for whole, _ in parts]
    by_remainder = sorted(range(files), key=lambda file: -parts[file][1])
    for file in by_remainder[: wanted - sum(shares)]:
        shares[file] += 1
    return shares


def _spread(rows: int, share: int, random: Random) -> Iterator[tuple[int, int]]:
    """Slices of a file that hold `share` of its rows."""
    count = -(-share // SLICE_ROWS)
    free = rows - share
    for n in range(count):
        # rows that are left out before the slice: some number in the slice's equal part of them all
        low, high = free * n // count, free * (n + 1) // count
        begin, end = share * n // count, share * (n + 1) // count
        skipped = low + int(random.random() * (high - low + 1))
        yield skipped + begin, skipped + end
