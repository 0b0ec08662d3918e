"""Ray Data with nothing of ours in as many blocks as Herd has shards: a read task a row group, an actor that gives each block
on as it is, a file written a block.

    python -m tests.bench.sides.ray_blocks FILE OUTPUT

Prints one JSON line: cpu_s of this process, the driver, seconds of the dataset's execution, blocks.
"""

import argparse
import json
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask


class Same:
    """An actor that changes nothing."""

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def read(file: str, group: int) -> Iterable[pa.Table]:
    yield pq.ParquetFile(file).read_row_group(group)


class RowGroups(Datasource):  # type: ignore[misc]
    """A block a row group of one file."""

    def __init__(self, file: str) -> None:
        self._file, self._footer = file, pq.ParquetFile(file).metadata

    def estimate_inmemory_data_size(self) -> int | None:
        return int(sum(self._footer.row_group(n).total_byte_size for n in range(self._footer.num_row_groups)))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        def task(number: int) -> ReadTask:
            group = self._footer.row_group(number)
            metadata = BlockMetadata(
                num_rows=group.num_rows, size_bytes=group.total_byte_size, input_files=None, exec_stats=None
            )
            return ReadTask(partial(read, self._file, number), metadata)

        return [task(n) for n in range(self._footer.num_row_groups)]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("file")
    arguments.add_argument("output")
    given = arguments.parse_args()
    ray.init("local", include_dashboard=False, log_to_driver=False)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None
    source = RowGroups(given.file)
    blocks = pq.ParquetFile(given.file).num_row_groups
    began = time.perf_counter()
    data = ray.data.read_datasource(source, override_num_blocks=blocks)
    data = data.map_batches(
        Same, batch_size=None, batch_format="pyarrow", compute=ActorPoolStrategy(size=1), num_cpus=0.01
    )
    data.write_parquet(given.output)
    seconds = time.perf_counter() - began
    print(json.dumps({"cpu_s": time.process_time(), "seconds": seconds, "blocks": blocks}))


if __name__ == "__main__":
    main()
