"""Free text through vLLM with two tensor parallel workers, against transformers on one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import Llama4ForConditionalGeneration, Llama4Processor

from tests.conftest import DEMO
from tests.e2e.conftest import Command, read_parts

MAX_TOKENS = 6


def test_tensor_parallel_text_equals_transformers(tmp_path: Path, command: Command) -> None:
    texts = [f"Say the number {i}." for i in range(24)]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / "texts.parquet")
    command(
        "run", "--model", DEMO / "model", "--input", tmp_path / "texts.parquet", "--prompt", "{{ text }}",
        "--output", tmp_path / "out", "--max-tokens", MAX_TOKENS, "--set", "engine.tensor_parallel_size=2",
        "--set", "engine.max_model_len=256", "--set", "engine.dtype=float32",
    )  # fmt: skip
    said = read_parts(tmp_path / "out" / "data")["response"].to_pylist()

    processor = Llama4Processor.from_pretrained(DEMO / "model")
    model = Llama4ForConditionalGeneration.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    expected = []
    for text in texts:
        turn = [{"role": "user", "content": text}]
        ids = processor.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        with torch.inference_mode():
            new = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False)[0, ids.shape[1] :]
        expected.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    assert said == expected
