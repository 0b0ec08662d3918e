"""The rows that benchmarks ask: unique texts, the demo's digits, prompts that share their beginnings. All seeded."""

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.bench.sides.process import ROOT

QUESTION = "Which digit is this?"
DIGITS = [str(d) for d in range(10)]
SEED = 4
SHARED_CHARS = 400
"""The demo's tokenizer makes a token of a byte."""


def write(table: pa.Table, folder: Path, *, files: int = 1, rows_per_group: int = 2048) -> Path:
    """Writes a table as so many files of one folder, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-table.num_rows // files)
    for n in range(files):
        pq.write_table(table.slice(n * share, share), folder / f"part-{n:05d}.parquet", row_group_size=rows_per_group)
    return folder


def texts(rows: int) -> pa.Table:
    """`prompt`: short questions, no two alike."""
    return pa.table({"prompt": [f"Ticket {i}: what does customer {i * 7919 % 100_003} want?" for i in range(rows)]})


def words(rows: int, words_a_row: int = 8) -> pa.Table:
    """`text`: rows of so many words, no two alike."""
    return pa.table({"text": [f"row {i} " + "word " * (words_a_row - 3) + "end" for i in range(rows)]})


def sized(rows: int, row_bytes: int) -> pa.Table:
    """`text`: rows of one long word each, no two alike."""
    return pa.table({"text": [f"{i:012d}".ljust(row_bytes, "x") for i in range(rows)]})


def digits(rows: int | None = None) -> pa.Table:
    """The demo's good rows: `prompt`, and `image` as bytes and path."""
    files = sorted((ROOT / "jobs/demo/data").glob("*.parquet"))
    table = pa.concat_tables([pq.ParquetFile(f).read() for f in files])
    table = table.filter(pc.not_equal(table["split"], "broken")).select(["image"])
    table = table.append_column("prompt", pa.array([QUESTION] * table.num_rows))
    return table if rows is None else table.slice(0, rows)


def repeated_digits(images: int, times: int) -> pa.Table:
    """Some of the digits, each so many times, in no order."""
    order = [i for i in range(images) for _ in range(times)]
    random.Random(SEED).shuffle(order)
    return digits(images).take(order)


def shared_beginnings(rows: int, beginnings: int) -> pa.Table:
    """`system`: one of so many long prompts, in no order; `prompt`: a question of the row's own."""
    draw = partial(random.Random(SEED).choices, "abcdefghijklmnopqrstuvwxyz ")
    shared = ["".join(draw(k=SHARED_CHARS)) for _ in range(beginnings)]
    order: Sequence[int] = [i % beginnings for i in range(rows)]
    order = random.Random(SEED).sample(order, rows)
    return pa.table({"system": [shared[g] for g in order], "prompt": [f"Question {i}?" for i in range(rows)]})
