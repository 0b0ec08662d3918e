"""Free text through vLLM with two tensor parallel workers, against transformers on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import Llama4ForConditionalGeneration, Llama4Processor

from tests.conftest import DEMO, REPOSITORY
from tests.e2e.conftest import Command, read_parts

MAX_TOKENS = 6
TEXTS = [f"Say the number {i}." for i in range(24)]
RAY_ON_CPU = Path(__file__).parent / "ray_on_cpu"
NODES = [
    {"num_cpus": 1},
    {
        "num_cpus": 2,
        "num_gpus": 2,
        "resources": {"accelerator_type:H100": 1},
        "labels": {"ray.io/accelerator-type": "H100"},
    },
]


@pytest.fixture(scope="module")
def expected() -> list[str]:
    processor = Llama4Processor.from_pretrained(DEMO / "model")
    model = Llama4ForConditionalGeneration.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    out = []
    for text in TEXTS:
        turn = [{"role": "user", "content": text}]
        ids = processor.tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")[
            "input_ids"
        ]
        with torch.inference_mode():
            new = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False)[0, ids.shape[1] :]
        out.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return out


def run(tmp_path: Path, command: Command, *more: object) -> list[str]:
    pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), tmp_path / "texts.parquet")
    command(
        "run", "--model", DEMO / "model", "--input", tmp_path / "texts.parquet", "--prompt", "{{ text }}",
        "--output", tmp_path / "out", "--max-tokens", MAX_TOKENS, "--set", "engine.tensor_parallel_size=2",
        "--set", "engine.max_model_len=256", "--set", "engine.dtype=float32", *more,
    )  # fmt: skip
    return list(read_parts(tmp_path / "out" / "data")["response"].to_pylist())


def test_tensor_parallel_text_equals_transformers(tmp_path: Path, command: Command, expected: list[str]) -> None:
    assert run(tmp_path, command) == expected


@pytest.mark.chaos
def test_workers_in_a_gang_of_rays_answer_as_transformers_do(
    tmp_path: Path, command: Command, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {
        "PYTHONPATH": os.pathsep.join([str(RAY_ON_CPU), str(REPOSITORY)]),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # what Herd says of itself only of pools on the CPU
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(key, value)
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.nodes", json.dumps(NODES)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert cluster.stdout is not None
        monkeypatch.setenv("RAY_ADDRESS", json.loads(cluster.stdout.readline())["address"])
        cluster.stdout.readline()  # the second node
        settings = ("pool.accelerator=H100", "engine.distributed_executor_backend=ray", "engine.enforce_eager=true",
                    "engine.max_num_seqs=32", "engine.max_num_batched_tokens=1024", "render.processes=1")  # fmt: skip
        said = run(tmp_path, command, *(part for setting in settings for part in ("--set", setting)))
    finally:
        cluster.communicate()  # it ends with its stdin
    assert said == expected
    engines = json.loads((tmp_path / "out" / "run.json").read_text())["sessions"][-1]["engines"]
    assert [engine["distributed_executor_backend"] for engine in engines.values()] == ["ray"]
