"""Short texts, 16 output tokens each: Herd against raw vLLM in one process, and against `ray.data.llm`."""

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
    claims = [
        Claim("text/raw", work, "raw `LLM.chat`", "rows/s", ("herd", "rows_per_s"), ("raw", "rows_per_s"), 1.0),
        Claim("text/ray", work, "`ray.data.llm`, steady", "rows/s", ("herd", "rows_per_s"), ("ray", "rows_per_s"), 1.5),
        Claim("text/ray-total", work, "`ray.data.llm`, total", "s", ("herd", "total_s"), ("ray", "total_s"), 2.2, True),
    ]
    sides = {"herd": partial(_herd, source), "raw": partial(_raw, source), "ray": partial(_ray, source)}
    if quick:
        del sides["ray"], claims[1:]
    return Bench("text", (__doc__ or "").strip(), sides, claims)


def _herd(source: Path, folder: Path) -> Figures:
    sampling = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    return herd.run(folder, herd.vllm_job(source, MAX_TOKENS, sampling=sampling)).figures


def _raw(source: Path, folder: Path) -> Figures:
    found = told("tests.bench.sides.raw_vllm", source, "--max-tokens", MAX_TOKENS, "--ignore-eos")
    return {"rows_per_s": found["rows_per_s"]}


def _ray(source: Path, folder: Path) -> Figures:
    found = told("tests.bench.sides.ray_llm", source, folder / "out", "--max-tokens", MAX_TOKENS)
    return {name: found[name] for name in ("rows_per_s", "total_s") if name in found}
