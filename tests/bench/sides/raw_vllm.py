"""The yardstick: vLLM's own `LLM.chat` over the rows of Parquet files, in this process, with nothing around it.

    python -m tests.bench.sides.raw_vllm INPUT [--image-column NAME] [--choice A,B] [--max-tokens N] [--ignore-eos]

Prints one JSON line: rows, rows_per_s (after a warm-up of 32 rows), hit_rate of the prefix cache, answers_sha256.
"""

import argparse
import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

MODEL = Path(__file__).resolve().parents[3] / "jobs" / "demo" / "model"
WARM_UP_ROWS = 32


def chats(rows: list[dict[str, Any]], image_column: str | None) -> list[list[dict[str, Any]]]:
    """Each row as a chat: its `system` if it has one, then its image and its `prompt`."""
    from PIL import Image

    out = []
    for row in rows:
        content: Any = row["prompt"]
        if image_column:
            image = Image.open(io.BytesIO(row[image_column]["bytes"])).convert("RGB")
            content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": row["prompt"]}]
        system = [{"role": "system", "content": row["system"]}] if "system" in row else []
        out.append([*system, {"role": "user", "content": content}])
    return out


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("input", type=Path)
    arguments.add_argument("--image-column")
    arguments.add_argument("--choice")
    arguments.add_argument("--max-tokens", type=int, default=16)
    arguments.add_argument("--max-model-len", type=int, default=512)
    arguments.add_argument("--max-num-seqs", type=int, default=128)
    arguments.add_argument("--block-size", type=int)
    arguments.add_argument("--num-blocks", type=int)
    arguments.add_argument("--ignore-eos", action="store_true")
    given = arguments.parse_args()

    import pyarrow.parquet as pq
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    rows = [row for file in sorted(given.input.glob("*.parquet")) for row in pq.ParquetFile(file).read().to_pylist()]
    llm = LLM(
        str(MODEL),
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        enforce_eager=True,
        dtype="bfloat16",
        distributed_executor_backend="uni",
        limit_mm_per_prompt={"image": 1 if given.image_column else 0},
        mm_processor_cache_gb=0,
        num_gpu_blocks_override=given.num_blocks,
        **({"block_size": given.block_size} if given.block_size else {}),
    )
    shape = StructuredOutputsParams(choice=given.choice.split(",")) if given.choice else None
    sampling = SamplingParams(
        temperature=0, max_tokens=given.max_tokens, ignore_eos=given.ignore_eos, structured_outputs=shape
    )
    llm.chat(chats(rows[:WARM_UP_ROWS], given.image_column), sampling, use_tqdm=False)
    started = time.perf_counter()
    outputs = llm.chat(chats(rows, given.image_column), sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    cached, asked = sum(o.num_cached_tokens or 0 for o in outputs), sum(len(o.prompt_token_ids) for o in outputs)
    texts = [o.outputs[0].text for o in outputs]
    told = {"rows": len(rows), "rows_per_s": len(rows) / seconds, "seconds": seconds, "hit_rate": cached / asked}
    print(json.dumps({**told, "answers_sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest()}))


if __name__ == "__main__":
    main()
