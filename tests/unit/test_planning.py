"""`herd plan`, whole, without Ray or vLLM: the demo's data and model, made-up rows, and many files."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import DEMO, REPOSITORY, Herd

KEPT = "name num_files num_rows num_shards rows_per_shard num_bytes columns_read columns_carried engines output"
NEW = "fits weights_gib_per_gpu kv_token_capacity reasons prompt_tokens image_tokens over_long_rows eta_s gpu_hours cost_usd"
MAVERICK = ("--model", "maverick", "--gpus", "8xH100")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def planned(herd: Herd, tmp_path: Path, *args: object, job: object = DEMO / "digits.yaml") -> dict[str, Any]:
    ended = herd("plan", job, "--set", f"output.uri={tmp_path / 'out'}", "--json", *args)
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_plan_of_the_demo_counts_every_token_and_broken_row(herd: Herd, tmp_path: Path) -> None:
    facts = planned(herd, tmp_path, "--look", 2000)
    assert set(facts) >= {*KEPT.split(), *NEW.split()}
    assert (facts["prompt_tokens"]["total"], facts["image_tokens"]["mean"]) == (125_790, 27)
    assert facts["output_tokens"]["total"]["expected"] == 3594
    assert facts["quarantined_rows"] == {"low": 4, "expected": 4, "high": 4}
    assert set(facts["quarantine_reasons"]) == {
        f"image/{kind}" for kind in ("image_truncated", "not_an_image", "image_null", "image_empty")
    }
    assert facts["fits"] is None and facts["eta_s"] is None and "CPU" in facts["unknown"]["eta_s"]


def test_plan_of_a_sample_holds_the_truth_in_its_intervals(herd: Herd, tmp_path: Path) -> None:
    facts = planned(herd, tmp_path, "--look", 256, "--look-seed", 3)
    assert 200 <= facts["sample"]["rows"] < 300 and not facts["sample"]["is_whole"]
    assert facts["prompt_tokens"]["total_low"] <= 125_790 <= facts["prompt_tokens"]["total_high"]
    assert facts["quarantined_rows"]["low"] <= 4 <= facts["quarantined_rows"]["high"]
    assert facts == {**planned(herd, tmp_path, "--look", 256, "--look-seed", 3), "seconds": facts["seconds"]}


def test_plan_of_footers_alone_looks_at_no_row(herd: Herd, tmp_path: Path) -> None:
    facts = planned(herd, tmp_path, "--look", 0, *MAVERICK)
    assert facts["num_rows"] == 1801 and facts["fits"] is True
    assert facts["prompt_tokens"] is facts["sample"] is facts["eta_s"] is None
    assert facts["unknown"]["prompt_tokens"] == "no row was looked at (--look 0)"


def test_plan_of_maverick_fits_and_costs_without_its_weights(herd: Herd, tmp_path: Path) -> None:
    facts = planned(herd, tmp_path, *MAVERICK, "--price", "H100=2.5")
    assert facts["fits"] is True and facts["weights_gib_per_gpu"] == pytest.approx(48.87, rel=0.02)
    assert facts["kv_token_capacity"] > 1_000_000
    assert "the model's files are not at hand" in facts["sample"]["tokens_by"]
    assert facts["image_tokens"]["max"] == 147  # 112 pixels are one tile of 336
    for key in ("eta_s", "gpu_hours", "cost_usd"):
        assert 0 < facts[key]["low"] < facts[key]["expected"] < facts[key]["high"]
    assert facts["cost_usd"]["expected"] == pytest.approx(2.5 * facts["gpu_hours"]["expected"], abs=0.01)
    assert "published" in facts["basis"]["speed"] and facts["basis"]["price"] == "--price H100=2.5"


def test_plan_of_what_does_not_fit_says_why_and_gives_no_time(herd: Herd, tmp_path: Path) -> None:
    facts = planned(herd, tmp_path, "--model", "maverick", "--gpus", "4xH100", "--set", "engine.tensor_parallel_size=4")
    assert facts["fits"] is False and "weights take" in facts["reasons"][0]
    assert facts["eta_s"] is None and facts["unknown"]["eta_s"] == "it does not fit"
    too_few = planned(herd, tmp_path, "--model", "maverick", "--gpus", "4xH100")
    assert too_few["fits"] is False and "an engine takes 8 GPUs" in too_few["reasons"][-1]


def test_plan_for_a_person_says_first_what_matters(herd: Herd, tmp_path: Path) -> None:
    ended = herd("plan", DEMO / "digits.yaml", "--set", f"output.uri={tmp_path}", "--look", 2000, *MAVERICK)
    assert ended.code == 0, ended.err
    lines = [line.rstrip() for line in ended.out.splitlines()]
    heads = [line.split("  ")[0] for line in lines if line and not line.startswith(" ")]
    assert heads[:6] == ["job", "fits", "engines", "time", "speed", "cost"]
    assert "fits           yes: 4" in ended.out and "GPU-hours, $" in ended.out
    assert "image/image_truncated: 1, such as: image: PNG of 124 bytes" in ended.out
    assert len(lines) < 30


def test_plan_of_echo_counts_words_and_takes_engines_as_the_pool_says(herd: Herd, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a b c", "d", "d"]}), tmp_path / "a.parquet")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: {{uri: {tmp_path}/a.parquet}}\nprompt: {{user: '{{{{ text }}}}'}}\nengine: {{kind: echo}}\npool: {{min: 2, max: 3}}\noutput: {{uri: x}}"
    )
    facts = planned(herd, tmp_path, job=job)
    assert facts["prompt_tokens"]["total"] == 5 and "words" in facts["sample"]["tokens_by"]
    assert facts["duplicate_rows"]["expected"] == 1
    assert facts["engines"] == {"min": 2, "max": 3, "num_cpus": 0.01, "count": 3, "basis": "the job's pool"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--gpus", "8xH1000"), "no figures for a GPU named"),
        (("--price", "cheap"), "is no price"),
        (("--like", "/nowhere/at/all"), "no run"),
        (("--look", "-1"), "-1"),
    ],
)
def test_plan_of_a_bad_question_is_one_sentence(args: tuple[str, ...], words: str, herd: Herd, tmp_path: Path) -> None:
    ended = herd("plan", DEMO / "digits.yaml", *args)
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err


def test_plan_of_many_files_reads_footers_and_few_row_groups(herd: Herd, tmp_path: Path) -> None:
    """Ten million rows in 2,000 files: one file under as many names."""
    folder = tmp_path / "many"
    folder.mkdir()
    first = folder / "part-0000.parquet"
    texts = [f"row {n}: the quick brown fox jumps over the lazy dog" for n in range(5000)]
    pq.write_table(pa.table({"text": texts}), first)
    for n in range(1, 2000):
        os.link(first, folder / f"part-{n:04d}.parquet")
    job = tmp_path / "job.yaml"
    job.write_text(f"input: {{uri: {folder}}}\nprompt: {{user: '{{{{ text }}}}'}}\nmodel: maverick\noutput: {{uri: x}}")
    facts = planned(herd, tmp_path, "--gpus", "8xH100", job=job)
    assert (facts["num_files"], facts["num_rows"], facts["num_shards"]) == (2000, 10_000_000, 20_000)
    assert facts["sample"]["row_groups"] <= 16 and facts["sample"]["rows"] == 512
    assert facts["prompt_tokens"]["total"] > 10_000_000
    assert facts["duplicate_rows"]["expected"] == pytest.approx(10_000_000 - 5000, rel=0.001)
    each = planned(herd, tmp_path, "--gpus", "8xH100", "--set", "cache.in_run=false", job=job)
    assert each["duplicate_rows"] is None and each["eta_s"]["expected"] > 1000 * facts["eta_s"]["expected"]
