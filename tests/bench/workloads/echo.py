"""What Herd costs with nothing to compute: the echo engine without latency on one actor, against Ray Data that reads the same
files, maps each row or each batch onto itself, and writes Parquet. Ours are rows over the engine's window and rows over the
session, which begins with the dataset's execution and holds the engine's start."""

from functools import partial
from pathlib import Path

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures
from tests.bench.sides import herd
from tests.bench.sides.process import told

TARGET = 0.6
FILES = 8


def prepare(folder: Path, quick: bool) -> Bench:
    rows = 50_000 if quick else 200_000
    source = inputs.write(inputs.words(rows), folder / "input", files=FILES, rows_per_group=8192)
    ours = {"window": "rows_per_s", "session": "session_rows_per_s"}
    theirs = {"row": "identity `map` by the row", "batch": "identity `map_batches`"}
    claims = [
        Claim(f"echo/{span}-{by}", f"{rows:,} rows, {span}", map_, "rows/s", ("herd", mine), (by, "rows_per_s"), TARGET)
        for span, mine in ours.items()
        for by, map_ in theirs.items()
    ]
    sides = {"herd": partial(_herd, source, rows), **{by: partial(_plain, source, by) for by in theirs}}
    return Bench("echo", " ".join((__doc__ or "").split()), sides, claims)


def _herd(source: Path, rows: int, folder: Path) -> Figures:
    figures = herd.run(folder, herd.echo_job(source, pool={"min": 1})).figures
    return {**figures, "session_rows_per_s": rows / figures["session_s"]}


def _plain(source: Path, by: str, folder: Path) -> Figures:
    found = told("tests.bench.sides.ray_plain", source, folder / "out", "--by", by)
    return {"rows_per_s": found["rows_per_s"], "seconds": found["seconds"]}
