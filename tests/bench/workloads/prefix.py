"""What order and reuse are worth: prompts that share eight long beginnings in no order, and images that come eight times each
in no order, as Herd asks them by default, against raw vLLM in the rows' own order. The hit rate is that of vLLM's prefix
cache: cached prompt tokens over all prompt tokens asked. Herd asks an identical request once and counts all rows."""

from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures, Side
from tests.bench.sides import herd
from tests.bench.sides.process import told

MAX_MODEL_LEN = 640
MAX_TOKENS = 4


def prepare(folder: Path, quick: bool) -> Bench:
    rows, images = (400, 50) if quick else (4000, 224)
    begins = inputs.write(inputs.shared_beginnings(rows), folder / "begins")
    repeats = inputs.write(inputs.repeated_digits(images, 8), folder / "repeats", rows_per_group=512)
    engine = {**herd.ENGINE, "max_model_len": MAX_MODEL_LEN}
    sampling = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    prompts = {"prompt": {"system": "{{ system }}", "user": "{{ prompt }}"}, "sampling": sampling}
    pictures = {"input": {"uri": str(repeats), "images": ["image"]}, "sampling": sampling}
    sides: dict[str, Side] = {
        "herd-prompts": partial(_herd, herd.vllm_job(begins, MAX_TOKENS, engine=engine, **prompts), rows),
        "raw-prompts": partial(_raw, begins, []),
        "herd-images": partial(_herd, herd.vllm_job(repeats, MAX_TOKENS, engine=engine, **pictures), 8 * images),
        "raw-images": partial(_raw, repeats, ["--image-column", "image"]),
    }
    works = {
        "prompts": f"{rows:,} prompts, {inputs.GROUPS} beginnings of {inputs.SHARED_CHARS} tokens",
        "images": f"{images} images, 8 times each",
    }
    claims = []
    for kind, work in works.items():
        ours, raw = f"herd-{kind}", f"raw-{kind}"
        for figure, unit in (("rows_per_s", "rows/s"), ("hit_rate", "hit rate")):
            key = f"prefix/{kind}-{figure.split('_')[0]}"
            claims.append(Claim(key, work, "raw, rows' order", unit, (ours, figure), (raw, figure)))
    return Bench("prefix", " ".join((__doc__ or "").split()), sides, claims)


def _herd(job: dict[str, Any], rows: int, folder: Path) -> Figures:
    run = herd.run(folder, job)
    cached, asked = (sum(e.get(f"{kind}_tokens", 0) for e in run.engines) for kind in ("cached", "prompt"))
    reused = sum(e.get("rows_reused", 0) for e in run.engines)
    return {
        "rows_per_s": rows / run.figures["window_s"],
        "hit_rate": cached / asked if asked else 0.0,
        "rows_reused": reused,
    }


def _raw(source: Path, options: list[str], folder: Path) -> Figures:
    options = [*options, "--max-tokens", str(MAX_TOKENS), "--max-model-len", str(MAX_MODEL_LEN), "--ignore-eos"]
    found = told("tests.bench.sides.raw_vllm", source, *options)
    return {"rows_per_s": found["rows_per_s"], "hit_rate": found["hit_rate"]}
