"""Sixteen echo engines that take a second for an answer and have 64 in hand each: at best 1,024 rows/s. Measured by the
times of commits, once a tenth of the rows is committed and each engine has committed a shard, until a tenth is left; and as
the sum of the engines' own windows."""

from functools import partial
from pathlib import Path

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures, Side
from tests.bench.sides import herd

ENGINES = 16
SEATS = 64
LATENCY_S = 1.0
BEST = ENGINES * SEATS / LATENCY_S
TARGET = 0.9
SHARD_ROWS = 128
"""Small, so that commits come evenly: each engine commits a shard every two seconds."""


def prepare(folder: Path, quick: bool) -> Bench:
    seconds = 30 if quick else 120
    rows = int(BEST * seconds)
    source = inputs.write(inputs.words(rows), folder / "input", files=4, rows_per_group=4096)
    work = f"{rows:,} rows, {ENGINES} engines"
    best = ("best", "rows_per_s")
    claims = [
        Claim("cluster/commits", work, "64 in hand each, 1 s", "rows/s", ("herd", "steady_rows_per_s"), best, TARGET),
        Claim("cluster/windows", f"{work}, by windows", "the same", "rows/s", ("herd", "windows_rows_per_s"), best),
    ]
    sides: dict[str, Side] = {"herd": partial(_herd, source), "best": _best}
    return Bench("cluster", " ".join((__doc__ or "").split()), sides, claims)


def _herd(source: Path, folder: Path) -> Figures:
    engine = {"max_num_seqs": SEATS, "echo": {"latency_s": LATENCY_S}}
    run = herd.run(folder, herd.echo_job(source, engine, pool={"min": ENGINES}, shard={"max_rows": SHARD_ROWS}))
    windows = sum(e["rows"] / e["window_s"] for e in run.engines if e.get("window_s"))
    return {**run.figures, "steady_rows_per_s": herd.steady_rate(run.commits()), "windows_rows_per_s": windows}


def _best(folder: Path) -> Figures:
    return {"rows_per_s": BEST}
