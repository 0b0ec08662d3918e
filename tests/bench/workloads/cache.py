"""The same rows a second time, to another output, with an answer cache that both runs share: the second starts no engine."""

from functools import partial
from pathlib import Path

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures, Side
from tests.bench.sides import herd


def prepare(folder: Path, quick: bool) -> Bench:
    if quick:
        source = inputs.write(inputs.words(5000), folder / "input")
        job, work = herd.echo_job(source), "5,000 rows, echo"
    else:
        table = inputs.digits()
        source = inputs.write(table, folder / "input", rows_per_group=512)
        images = {"uri": str(source), "images": ["image"]}
        job = herd.vllm_job(source, 4, input=images, answer={"choice": inputs.DIGITS})
        work = f"{table.num_rows:,} images, `choice`"
    claims = [
        Claim("cache/engines", f"{work}, again", "no engine started", "", ("herd", "no_engine"), ("ideal", "one"), 1.0),
        Claim("cache/total", work, "the first run", "s", ("herd", "again_s"), ("herd", "first_s"), inverse=True),
    ]
    sides: dict[str, Side] = {"herd": partial(_herd, job), "ideal": _ideal}
    return Bench("cache", (__doc__ or "").strip(), sides, claims)


def _herd(job: dict[str, object], folder: Path) -> Figures:
    runs = []
    for name in ("first", "again"):
        (folder / name).mkdir()
        runs.append(herd.run(folder / name, job, f"cache.uri={folder / 'cache'}"))
    first, again = runs
    assert first.answers_sha256() == again.answers_sha256(), "the second run gave other answers"
    started = len(again.engines)
    return {"first_s": first.seconds, "again_s": again.seconds, "engines": started, "no_engine": float(not started)}


def _ideal(folder: Path) -> Figures:
    return {"one": 1.0}
