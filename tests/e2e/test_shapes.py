"""Chats with images and JSON answers through vLLM, and the rows that vLLM itself refuses."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import DEMO
from tests.e2e.conftest import Command, read_parts

NUM_DIGITS = 24
SCHEMA = {
    "type": "object",
    "properties": {"digit": {"enum": [str(d) for d in range(10)]}},
    "required": ["digit"],
    "additionalProperties": False,
}


def chat(question: str, image: bytes | None) -> str:
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if image is not None:
        url = "data:image/png;base64," + base64.b64encode(image).decode()
        parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
    system = {"role": "system", "content": "You label handwritten digits."}
    return json.dumps([system, {"role": "user", "content": parts}])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    digits = pq.read_table(DEMO / "data" / "digits-00000.parquet").slice(0, NUM_DIGITS).to_pylist()
    question = "Which digit is this? Answer in JSON."
    rows = [
        {"id": r["id"], "label": r["label"], "chat": chat(question, r["image"]["bytes"]), "options": None}
        for r in digits
    ]
    rows += [
        {"id": "too-long", "label": None, "chat": chat("x" * 600, None), "options": None},
        {"id": "bad-sampling", "label": None, "chat": chat("Say it.", None), "options": '{"temperature": -3}'},
        {
            "id": "cut",
            "label": None,
            "chat": chat(question, digits[0]["image"]["bytes"]),
            "options": '{"max_tokens": 3}',
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "chats.parquet")
    job = {
        "input": {"uri": str(folder / "chats.parquet"), "sampling": "options", "carry": ["id", "label"]},
        "prompt": {"messages": "chat"},
        "model": str(DEMO / "model"),
        "sampling": {"max_tokens": 32},
        "answer": {"json_schema": SCHEMA},
        "engine": {"max_model_len": 512, "dtype": "bfloat16"},
        "limits": {"max_quarantined_fraction": 0.5},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    command("run", folder / "job.yaml")
    return folder / "out"


def test_json_answers_are_typed_and_right(out: Path) -> None:
    rows = read_parts(out / "data")
    assert rows.schema.field("answer").type == pa.struct([("digit", pa.string())])
    assert rows.num_rows == NUM_DIGITS
    right = sum(r["answer"]["digit"] == r["label"] for r in rows.to_pylist())
    assert right >= NUM_DIGITS - 2
    assert all(json.loads(r["response"]) == r["answer"] for r in rows.to_pylist())


def test_rows_that_the_model_cannot_take_are_quarantined(out: Path) -> None:
    found = {r["id"]: (r["stage"], r["error_type"]) for r in read_parts(out / "quarantine").to_pylist()}
    assert found == {
        "too-long": ("render", "prompt_too_long"),
        "bad-sampling": ("render", "bad_sampling"),
        "cut": ("answer", "answer_cut"),
    }


def test_lineage_tells_rows_of_other_sampling_apart(out: Path) -> None:
    same = set(read_parts(out / "data")["lineage"].combine_chunks().field("sampling_sha256").to_pylist())
    other = {r["id"]: r["lineage"]["sampling_sha256"] for r in read_parts(out / "quarantine").to_pylist()}
    assert len(same) == 1 and other["cut"] not in same and other["too-long"] is None
