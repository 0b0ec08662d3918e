"""The demo's digits (112 px, five tiles each), three output tokens: Herd against `ray.data.llm` with the same images."""

from functools import partial
from pathlib import Path

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures
from tests.bench.sides import herd
from tests.bench.sides.process import told

MAX_TOKENS = 3


def prepare(folder: Path, quick: bool) -> Bench:
    table = inputs.digits(400 if quick else None)
    source = inputs.write(table, folder / "input", rows_per_group=512)
    work = f"{table.num_rows:,} images, {MAX_TOKENS} tokens"
    speed, total = "rows_per_s", "total_s"
    claims = [
        Claim("images/ray", work, "`ray.data.llm`, steady", "rows/s", ("herd", speed), ("ray", speed), 1.3),
        Claim("images/ray-total", work, "`ray.data.llm`, total", "s", ("herd", total), ("ray", total), 2.2, True),
    ]
    sides = {"herd": partial(_herd, source), "ray": partial(_ray, source)}
    return Bench("images", (__doc__ or "").strip(), sides, claims)


def _herd(source: Path, folder: Path) -> Figures:
    job = herd.vllm_job(
        source,
        MAX_TOKENS,
        input={"uri": str(source), "images": ["image"]},
        sampling={"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True},
    )
    return herd.run(folder, job).figures


def _ray(source: Path, folder: Path) -> Figures:
    options = ["--image-column", "image", "--max-tokens", MAX_TOKENS]
    found = told("tests.bench.sides.ray_llm", source, folder / "out", *options)
    return {name: found[name] for name in ("rows_per_s", "total_s") if name in found}
