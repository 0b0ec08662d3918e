"""Plans so many rows from footers that exist only here: what cutting, ordering, bundling and the read tasks take.

    python -m tests.bench.sides.plan_rows ROWS

Prints one JSON line: shards, bundles, the plan's bytes, the seconds of each step, and the peak memory after it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.bundles import bundles, in_order
from pipeline.config import StorageConfig
from pipeline.plan import RowGroup, cut
from pipeline.source import ShardSource
from tests.bench.sides.memory import peak_mib

ROWS_PER_GROUP = 100_000
GROUPS_PER_FILE = 10
ROW_BYTES = 1000
SHARD_ROWS = 512
LANES = 6 * 64
"""Bundles at work at a time in a pool of 64 engines."""


def footers(rows: int) -> Iterator[RowGroup]:
    for n in range(-(-rows // ROWS_PER_GROUP)):
        num_rows = min(ROWS_PER_GROUP, rows - n * ROWS_PER_GROUP)
        file, group = divmod(n, GROUPS_PER_FILE)
        uri = f"s3://bucket/dataset/part-{file:07d}.parquet"
        yield RowGroup(uri, f"{file:032x}", 2**30, group, num_rows, num_rows * ROW_BYTES)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("rows", type=int)
    rows = arguments.parse_args().rows
    out: dict[str, float] = {}

    def step(name: str, act: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = act()
        out[f"{name}_s"] = time.perf_counter() - began
        out[f"{name}_mib"] = peak_mib()
        return made

    step("import", lambda: None)
    table = step("cut", lambda: cut(footers(rows), max_rows=SHARD_ROWS, max_bytes=64 * 2**20))
    ordered = step("order", lambda: in_order(table))
    packed = step("bundle", lambda: bundles(ordered, LANES))
    source = ShardSource(packed, pa.schema([("text", pa.string())]), StorageConfig(), None, {})
    tasks = step("tasks", lambda: source.get_read_tasks(len(packed)))
    print(json.dumps({"shards": table.num_rows, "bundles": len(tasks), "plan_mib": table.nbytes / 2**20, **out}))


if __name__ == "__main__":
    main()
