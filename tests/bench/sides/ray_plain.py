"""Ray Data with nothing of ours: the same files read, each row given on as it is, and written as Parquet.

    python -m tests.bench.sides.ray_plain INPUT OUTPUT --by row|batch

Prints one JSON line: rows, rows_per_s and seconds of the dataset's execution; Ray is connected before.
"""

import argparse
import json
import time
from typing import Any


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("input")
    arguments.add_argument("output")
    arguments.add_argument("--by", choices=["row", "batch"], required=True)
    given = arguments.parse_args()

    import pyarrow.dataset as ds
    import ray

    def same(thing: Any) -> Any:
        return thing

    ray.init("local", include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.perf_counter()
    data = ray.data.read_parquet(given.input)
    data = data.map(same) if given.by == "row" else data.map_batches(same, batch_format="pyarrow")
    data.write_parquet(given.output)
    seconds = time.perf_counter() - started
    rows = ds.dataset(given.output).count_rows()
    print(json.dumps({"rows": rows, "rows_per_s": rows / seconds, "seconds": seconds}))


if __name__ == "__main__":
    main()
