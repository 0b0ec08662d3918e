"""The peer: the same requests through `ray.data.llm`, Parquet in and Parquet out.

    python -m tests.bench.sides.ray_llm INPUT OUTPUT [--image-column NAME] [--max-tokens N]

Prints one JSON line: rows, rows_per_s in its steady state, total_s. The input is read beforehand, in 32 blocks; the total
runs from there to the last file written, engine start included. A row is stamped when its block leaves the engine's stage,
and the rate is that of the rows after the first block. Ray is told of 16 CPUs, since with an actor a stage fewer would
leave stages waiting for each other for ever.
"""

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[3] / "jobs" / "demo" / "model"
CPUS = 16
BLOCKS = 32
FIRST_BLOCK_S = 0.5
"""Rows stamped within so many seconds of the first one left with the first block."""
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def image_prompt() -> str:
    """The chat template around an image and the word QUESTION."""
    from transformers import AutoTokenizer

    content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
    chat = [{"role": "user", "content": content}]
    tokenizer = AutoTokenizer.from_pretrained(str(MODEL))
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("input")
    arguments.add_argument("output", type=Path)
    arguments.add_argument("--image-column")
    arguments.add_argument("--max-tokens", type=int, default=16)
    given = arguments.parse_args()

    import pyarrow.parquet as pq
    import ray
    from PIL import Image
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    ray.init(
        "local", num_cpus=CPUS, runtime_env={"env_vars": ENVIRONMENT}, log_to_driver=False, include_dashboard=False
    )
    column, max_tokens = given.image_column, given.max_tokens
    template = image_prompt() if column else ""

    def asked(row: dict[str, Any]) -> dict[str, Any]:
        sampling = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        if not column:
            return {"messages": [{"role": "user", "content": row["prompt"]}], "sampling_params": sampling}
        # finished prompts and images: Ray's own stage for images needs a module that this vLLM no longer has
        image = Image.open(io.BytesIO(row[column]["bytes"])).convert("RGB")
        prompt = template.replace("QUESTION", row["prompt"])
        return {"prompt": prompt, "multimodal_data": {"image": [image]}, "sampling_params": sampling}

    def answered(row: dict[str, Any]) -> dict[str, Any]:
        return {"response": row["generated_text"], "done_at": time.time()}

    stages: dict[str, Any] = {"chat_template_stage": False, "tokenize_stage": False} if column else {}
    images: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1}, "mm_processor_cache_gb": 0} if column else {}
    config = vLLMEngineProcessorConfig(
        model_source=str(MODEL),
        concurrency=1,
        batch_size=64,
        max_concurrent_batches=8,
        engine_kwargs={
            "max_model_len": 512,
            "max_num_seqs": 128,
            "dtype": "bfloat16",
            "enforce_eager": True,
            "distributed_executor_backend": "mp",
            **images,
        },
        placement_group_config={"bundles": [{"CPU": 1}]},
        **stages,
    )
    processor = build_processor(config, preprocess=asked, postprocess=answered)
    data = ray.data.read_parquet(given.input).repartition(BLOCKS).materialize()
    started = time.time()
    processor(data).write_parquet(str(given.output))
    total_s = time.time() - started
    stamps = sorted(s for f in given.output.glob("*.parquet") for s in pq.read_table(f)["done_at"].to_pylist())
    later = [s for s in stamps if s > stamps[0] + FIRST_BLOCK_S]
    rate = {"rows_per_s": len(later) / (stamps[-1] - stamps[0])} if later else {}
    print(json.dumps({"rows": len(stamps), "total_s": total_s, **rate}))


if __name__ == "__main__":
    main()
