"""What order and reuse are worth. Prompts that share eight long beginnings in no order; 128 of them, with a KV cache that
cannot hold them all; images that come eight times each in no order. Herd asks them as it does by default, against raw vLLM
in the rows' own order, and for the eight beginnings against itself without vLLM's prefix cache. The hit rate is that of this
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
SMALL_CACHE = {"block_size": 32, "num_gpu_blocks_override": 1024}
"""32,768 tokens: about 75 of the beginnings."""


def prepare(folder: Path, quick: bool) -> Bench:
    rows, images = (400, 50) if quick else (4000, 224)
    few = inputs.write(inputs.shared_beginnings(rows, 8), folder / "few")
    many = inputs.write(inputs.shared_beginnings(rows, 128), folder / "many")
    repeats = inputs.write(inputs.repeated_digits(images, 8), folder / "repeats", rows_per_group=512)
    engine = {**herd.ENGINE, "max_model_len": MAX_MODEL_LEN}
    sampling = {"temperature": 0, "max_tokens": MAX_TOKENS, "ignore_eos": True}
    prompts = {"prompt": {"system": "{{ system }}", "user": "{{ prompt }}"}, "sampling": sampling}
    pictures = {"input": {"uri": str(repeats), "images": ["image"]}, "sampling": sampling}
    small = ["--block-size", SMALL_CACHE["block_size"], "--num-blocks", SMALL_CACHE["num_gpu_blocks_override"]]

    def ours(source: Path, *, rows: int, sections: dict[str, Any], **settings: Any) -> Side:
        return partial(_herd, herd.vllm_job(source, MAX_TOKENS, engine={**engine, **settings}, **sections), rows)

    sides: dict[str, Side] = {
        "herd-prompts": ours(few, rows=rows, sections=prompts),
        "raw-prompts": partial(_raw, few, []),
        "uncached-prompts": ours(few, rows=rows, sections=prompts, enable_prefix_caching=False),
        "herd-crowded": ours(many, rows=rows, sections=prompts, **SMALL_CACHE),
        "raw-crowded": partial(_raw, many, small),
        "herd-images": ours(repeats, rows=8 * images, sections=pictures),
        "raw-images": partial(_raw, repeats, ["--image-column", "image"]),
    }
    shared = f"beginnings of {inputs.SHARED_CHARS} tokens"
    works = {
        "prompts": f"{rows:,} prompts, 8 {shared}",
        "crowded": f"{rows:,} prompts, 128 {shared}, room for 75",
        "images": f"{images} images, 8 times each",
    }
    claims = []
    for kind, work in works.items():
        for figure, unit in (("rows_per_s", "rows/s"), ("hit_rate", "hit rate")):
            key = f"prefix/{kind}-{figure.split('_')[0]}"
            sides_of = (f"herd-{kind}", figure), (f"raw-{kind}", figure)
            claims.append(Claim(key, work, "raw, rows' order", unit, *sides_of))
    without = ("herd-prompts", "rows_per_s"), ("uncached-prompts", "rows_per_s")
    claims.append(Claim("prefix/cache-rows", works["prompts"], "Herd without the prefix cache", "rows/s", *without))
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


def _raw(source: Path, options: list[str | int], folder: Path) -> Figures:
    options = [*options, "--max-tokens", MAX_TOKENS, "--max-model-len", MAX_MODEL_LEN, "--ignore-eos"]
    found = told("tests.bench.sides.raw_vllm", source, *options)
    return {"rows_per_s": found["rows_per_s"], "hit_rate": found["hit_rate"]}
