"""Short texts, 16 output tokens each: Herd against raw vLLM in one process, and against `ray.data.llm`; with one engine that
has all cores, as the other sides have it, and with an engine a core (`pool`)."""

import os
from functools import partial
from pathlib import Path

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures
from tests.bench.sides import herd
from tests.bench.sides.process import told

MAX_TOKENS = 16


def prepare(folder: Path, quick: bool) -> Bench:
    rows = 2000 if quick else 8000
    source = inputs.write(inputs.texts(rows), folder / "input")
    work = f"{rows:,} texts, {MAX_TOKENS} tokens"
    rate, total = "rows_per_s", "total_s"
    claims = [
        Claim(f"text/{prefix}{key}", work, against, unit, (side, figure), (theirs, figure), target, figure == total)
        for side, prefix in (("herd", ""), ("pool", "pool-"))
        for key, against, unit, theirs, figure, target in (
            ("raw", "raw `LLM.chat`", "rows/s", "raw", rate, 1.0),
            ("ray", "`ray.data.llm`, steady", "rows/s", "ray", rate, 1.5),
            ("ray-total", "`ray.data.llm`, total", "s", "ray", total, 2.2),
        )
    ]
    sides = {
        "herd": partial(_herd, source, 1),
        "raw": partial(_raw, source),
        "pool": partial(_herd, source, os.cpu_count() or 1),
        "ray": partial(_ray, source),
    }
    if quick:
        del sides["pool"], sides["ray"], claims[1:]
    return Bench("text", " ".join((__doc__ or "").split()), sides, claims)


def _herd(source: Path, engines: int, folder: Path) -> Figures:
    sampling = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    job = herd.vllm_job(source, MAX_TOKENS, sampling=sampling, pool={"min": engines})
    return herd.run(folder, job).figures


def _raw(source: Path, folder: Path) -> Figures:
    found = told("tests.bench.sides.raw_vllm", source, "--max-tokens", MAX_TOKENS, "--ignore-eos")
    return {"rows_per_s": found["rows_per_s"]}


def _ray(source: Path, folder: Path) -> Figures:
    found = told("tests.bench.sides.ray_llm", source, folder / "out", "--max-tokens", MAX_TOKENS)
    return {name: found[name] for name in ("rows_per_s", "total_s") if name in found}
