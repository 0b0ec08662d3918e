"""The yardstick: vLLM's own `LLM.chat` over rows of a Parquet file, in this process, with nothing around it.

    python -m tests.bench.raw_vllm MODEL FILE --prompt TEXT [--image-column NAME] [--choice A,B] [--max-tokens N]

Prints one JSON line: rows, rows_per_s (median of the repeats, after a warm-up of 32 rows), answers_sha256.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def chats(rows: list[dict[str, Any]], prompt: str, image_column: str | None) -> list[list[dict[str, Any]]]:
    from PIL import Image

    out = []
    for row in rows:
        content: Any = prompt
        if image_column:
            image = Image.open(io.BytesIO(row[image_column]["bytes"])).convert("RGB")
            content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": prompt}]
        out.append([{"role": "user", "content": content}])
    return out


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("model")
    arguments.add_argument("file")
    arguments.add_argument("--prompt", required=True)
    arguments.add_argument("--image-column")
    arguments.add_argument("--choice")
    arguments.add_argument("--max-tokens", type=int, default=16)
    arguments.add_argument("--max-model-len", type=int, default=512)
    arguments.add_argument("--max-num-seqs", type=int, default=128)
    arguments.add_argument("--repeat", type=int, default=3)
    given = arguments.parse_args()

    import pyarrow.parquet as pq
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    rows = pq.ParquetFile(given.file).read().to_pylist()
    llm = LLM(
        given.model,
        max_model_len=given.max_model_len,
        max_num_seqs=given.max_num_seqs,
        enforce_eager=True,
        dtype="bfloat16",
        distributed_executor_backend="uni",
        limit_mm_per_prompt={"image": 1 if given.image_column else 0},
        mm_processor_cache_gb=0,
    )
    shape = StructuredOutputsParams(choice=given.choice.split(",")) if given.choice else None
    sampling = SamplingParams(temperature=0, max_tokens=given.max_tokens, structured_outputs=shape)
    llm.chat(chats(rows[:32], given.prompt, given.image_column), sampling, use_tqdm=False)
    speeds, texts = [], []
    for _ in range(given.repeat):
        started = time.perf_counter()
        outputs = llm.chat(chats(rows, given.prompt, given.image_column), sampling, use_tqdm=False)
        speeds.append(len(rows) / (time.perf_counter() - started))
        texts = [o.outputs[0].text for o in outputs]
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    print(json.dumps({"rows": len(rows), "rows_per_s": round(statistics.median(speeds), 1), "answers_sha256": digest}))


if __name__ == "__main__":
    main()
