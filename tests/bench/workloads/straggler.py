"""Forty files of a shard each, the last one's rows twenty times as long, on four engines whose answers take longer the longer
they are: the run from its first admission to its last commit, against all work spread evenly over all seats. The first
admission is taken from the commit records: the earliest time of a commit less the seconds that its shard took."""

from functools import partial
from pathlib import Path

import pyarrow as pa

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures
from tests.bench.sides import herd

FILES = 40
ENGINES = 4
SEATS = 64
SHORT_WORDS = 5
TIMES = 20
TARGET = 1.15


def prepare(folder: Path, quick: bool) -> Bench:
    rows, token_s = (256, 0.06) if quick else (512, 0.1)
    source = folder / "input"
    for n in range(FILES):
        length = SHORT_WORDS * (TIMES if n == FILES - 1 else 1)
        texts = [" ".join([f"{n}.{i}", *["word"] * (length - 1)]) for i in range(rows)]
        inputs.write(pa.table({"text": texts}), source / f"file-{n:02d}")
    tokens = rows * SHORT_WORDS * (FILES - 1 + TIMES)
    ideal_s = tokens * token_s / (ENGINES * SEATS)
    claim = Claim(
        "straggler/length",
        f"{FILES} shards of {rows} rows, the last {TIMES} times longer",
        "the ideal schedule",
        "s",
        ("herd", "length_s"),
        ("ideal", "length_s"),
        TARGET,
        at_most=True,
    )
    sides = {"herd": partial(_herd, source, token_s), "ideal": partial(_ideal, ideal_s)}
    return Bench("straggler", " ".join((__doc__ or "").split()), sides, [claim])


def _herd(source: Path, token_s: float, folder: Path) -> Figures:
    engine = {"max_num_seqs": SEATS, "echo": {"token_s": token_s}}
    files = [str(f) for f in sorted(source.iterdir())]
    job = herd.echo_job(source, engine, pool={"min": ENGINES}, input={"uri": files})
    run = herd.run(folder, job)
    commits = run.commits()
    began = min(r["at"] - r["seconds"] for r in commits)
    return {**run.figures, "length_s": commits[-1]["at"] - began, "shards": len(commits)}


def _ideal(seconds: float, folder: Path) -> Figures:
    return {"length_s": seconds}
