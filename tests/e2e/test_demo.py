"""The demo, whole: a real Llama 4 labels real images through Ray Data and vLLM."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pytest
import torch
from transformers import Llama4ForConditionalGeneration, Llama4Processor

from jobs.demo.make_model import load_split, pixels_of, prompt_ids
from tests.conftest import DEMO
from tests.e2e.conftest import Command, read_parts


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "digits"
    ended = command("run", "jobs/demo/digits.yaml", "--set", f"output.uri={folder}")
    assert "1,801 in = 1,797 answered + 4 quarantined" in ended.stdout
    assert "broken-truncated" in ended.stdout and "image/image_truncated" in ended.stdout
    return folder


def test_demo_held_out_digits_are_labelled_right(out: Path) -> None:
    rows = read_parts(out / "data")
    held_out = rows.filter(pc.equal(rows["split"], "test"))
    assert held_out.num_rows == 397
    right = pc.sum(pc.equal(held_out["answer"], held_out["label"])).as_py()
    assert right / held_out.num_rows >= 0.97


def test_demo_labels_equal_those_of_transformers(out: Path) -> None:
    rows = read_parts(out / "data")
    said = dict(zip(rows["id"].to_pylist(), rows["answer"].to_pylist(), strict=True))
    processor = Llama4Processor.from_pretrained(DEMO / "model")
    model = Llama4ForConditionalGeneration.from_pretrained(DEMO / "model", dtype=torch.bfloat16).eval()
    prompt = prompt_ids(processor, None, "Which digit is this?")
    same = total = 0
    for split in ("train", "test"):
        images, _ = load_split(split)
        ids = rows.filter(pc.equal(rows["split"], split))["id"].to_pylist()
        assert len(ids) == len(images)
        for start in range(0, len(images), 128):
            pixels = pixels_of(processor, images[start : start + 128]).to(torch.bfloat16)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt] * len(pixels)), pixel_values=pixels.flatten(0, 1)).logits
            greedy = [processor.tokenizer.decode([t]) for t in logits[:, -1].argmax(-1).tolist()]
            same += sum(said[i] == g for i, g in zip(ids[start : start + 128], greedy, strict=True))
            total += len(greedy)
    assert total == 1797
    assert same / total >= 0.995


def test_demo_broken_rows_are_quarantined_with_their_reasons(out: Path) -> None:
    rows = {r["id"]: r for r in read_parts(out / "quarantine").to_pylist()}
    assert {i: (r["stage"], r["error_type"]) for i, r in rows.items()} == {
        "broken-truncated": ("image", "image_truncated"),
        "broken-text": ("image", "not_an_image"),
        "broken-null": ("image", "image_null"),
        "broken-empty": ("image", "image_empty"),
    }
    assert "404 Not Found" in rows["broken-text"]["message"]


def test_demo_run_is_complete_and_traceable(out: Path, command: Command) -> None:
    verdict = json.loads(command("verify", out, "--json").stdout)
    assert verdict["complete"] and verdict["rows_missing"] == 0 and verdict["num_problems"] == 0
    record = json.loads((out / "run.json").read_text())
    lineage = read_parts(out / "data")["lineage"].combine_chunks()
    assert set(lineage.field("weights_digest").to_pylist()) == {record["model"]["weights_digest"]}
    assert record["model"]["weights_digest"].startswith("sha256:")
    assert set(lineage.field("run_id").to_pylist()) == {record["run_id"]}
    assert all(e.startswith("vllm 0.32") for e in set(lineage.field("engine").to_pylist()))
    digests = lineage.field("request_sha256").to_pylist()
    assert None not in digests and len(set(digests)) > 1700  # few digits are drawn twice with the same pixels


def test_demo_run_again_has_nothing_to_do(out: Path, command: Command) -> None:
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    ended = command("run", "jobs/demo/digits.yaml", "--set", f"output.uri={out}")
    assert "nothing was left to do" in ended.stdout
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == before


def test_demo_plan_counts_the_tokens_that_vllm_counted(out: Path, command: Command) -> None:
    facts = json.loads(command("plan", "jobs/demo/digits.yaml", "--look", 1801, "--json").stdout)
    totals = json.loads((out / "_SUCCESS").read_text())
    counted = read_parts(out / "data")["prompt_tokens"]
    assert facts["prompt_tokens"]["total"] == pc.sum(counted).as_py() == totals["prompt_tokens"]
    assert (
        facts["prompt_tokens"]["max"] == pc.max(counted).as_py()
        and facts["prompt_tokens"]["mean"] == pc.mean(counted).as_py()
    )
    assert facts["output_tokens"]["total"]["expected"] == totals["output_tokens"]
    assert {r: about["sampled"] for r, about in facts["quarantine_reasons"].items()} == totals["quarantine_reasons"]
