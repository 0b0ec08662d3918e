"""What `herd plan` counts beforehand is what vLLM counts in a run: row by row, with texts, chats and images of many sizes."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from cluster.families import from_folder
from cluster.tokens import token_counter
from jobs.jobfile import load_job
from pipeline.footers import make_plan
from pipeline.sample import choose
from pipeline.survey import Survey, survey
from tests.conftest import DEMO
from tests.e2e.conftest import Command, read_parts

MODEL = DEMO / "model"
CONTEXT = 600
SIZES = [(112, 112), (300, 100), (100, 300), (57, 56), (640, 480), (33, 90), (224, 56), (1000, 40), (64, 64)]


def picture(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (width % 255, height % 255, 99)).save(out, "PNG")
    return out.getvalue()


def rows() -> list[dict[str, Any]]:
    """Images from none to twelve, of all sizes, beside texts of all lengths, some of other scripts."""
    texts = ["Which digit?", "  spaces \n kept  ", "Füße, 数字, 🙂", "long " * 40, "<|eot|> is only text here"]
    pictures = [picture(*size) for size in SIZES]
    out = [
        {"id": n, "photos": [pictures[(n + k) % len(pictures)] for k in range(n % 4)], "text": texts[n % len(texts)]}
        for n in range(60)
    ]
    out += [
        {"id": 60, "photos": [pictures[0]] * 12, "text": "more images than a prompt may have"},
        {"id": 61, "photos": [pictures[4][:200]], "text": "a broken one"},
        {"id": 62, "photos": [], "text": "x" * CONTEXT},
        {"id": 63, "photos": [], "text": None},
    ]
    return out


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    pq.write_table(pa.Table.from_pylist(rows()), folder / "rows.parquet", row_group_size=20)
    config = {
        "input": {"uri": str(folder / "rows.parquet"), "images": ["photos"]},
        "prompt": {"system": "You look at things.", "user": "{{ text }}"},
        "model": str(MODEL),
        "sampling": {"max_tokens": 2},
        "engine": {"max_model_len": CONTEXT, "dtype": "bfloat16"},
        "limits": {"max_quarantined_fraction": 1.0},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config))
    return folder / "job.yaml"


@pytest.fixture(scope="module")
def out(job: Path, command: Command) -> Path:
    command("run", job)
    return job.parent / "out"


def looked_at(job: Path) -> Survey:
    config = load_job(str(job))
    columns, _, table = make_plan(config)
    counter = token_counter(config, MODEL, from_folder(MODEL).tiling)
    pieces = choose(table, 1000)
    return survey(config, columns, pieces, counter, total_rows=64, max_model_len=CONTEXT, max_images=10)


def test_plan_counts_for_each_row_what_vllm_counts(job: Path, out: Path) -> None:
    answered = read_parts(out / "data")
    said = dict(zip(answered["id"].to_pylist(), answered["prompt_tokens"].to_pylist(), strict=True))
    counted = {
        n: row.tokens.prompt_tokens for n, row in enumerate(looked_at(job).rows) if not row.reason and row.tokens
    }
    assert counted == said and len(said) == 60 and len(set(said.values())) > 20


def test_plan_names_each_row_that_is_quarantined_before_an_engine_sees_it(job: Path, out: Path) -> None:
    refused = {r["id"]: f"{r['stage']}/{r['error_type']}" for r in read_parts(out / "quarantine").to_pylist()}
    assert {n: row.reason for n, row in enumerate(looked_at(job).rows) if row.reason} == refused
    assert set(refused) == {60, 61, 62, 63}


def test_run_keeps_its_estimate_beside_what_came(job: Path, out: Path, command: Command) -> None:
    record, totals = (json.loads((out / name).read_text()) for name in ("run.json", "_SUCCESS"))
    estimate = record["estimate"]
    assert estimate["prompt_tokens"]["total"] == totals["prompt_tokens"]  # of so few rows all are looked at
    assert totals["estimate"] == estimate and totals["spent"]["seconds"] > 0
    assert (
        f"prompt tokens: {totals['prompt_tokens']:,} expected, {totals['prompt_tokens']:,} came" in totals["compared"]
    )
    status = json.loads(command("status", out, "--json").stdout)
    assert (status["estimate"], status["spent"], status["compared"]) == (
        estimate,
        totals["spent"],
        totals["compared"],
    )


def test_plan_goes_by_the_records_of_an_earlier_run(job: Path, out: Path, command: Command) -> None:
    elsewhere = ("--set", f"output.uri={job.parent / 'other'}")
    facts = json.loads(command("plan", job, "--like", out, *elsewhere, "--json").stdout)
    totals = json.loads((out / "_SUCCESS").read_text())
    assert facts["eta_s"]["low"] <= totals["spent"]["seconds"] * 1.5 and facts["basis"]["speed"].startswith(
        "measured: "
    )
    assert facts["gpu_hours"] is None and facts["unknown"]["gpu_hours"] == "engines run on the CPU"
    own = json.loads(command("plan", job, "--json").stdout)
    assert own["basis"]["speed"].startswith("measured: ")
