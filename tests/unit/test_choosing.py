"""`engine: auto` from the job file to the settings of a run, and the check that an engine fits; no GPU, Ray or vLLM runs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.gpus import GPUS, Gpus, parse_gpus
from cluster.models import with_profile
from cluster.placement import Node
from cluster.profiles import PROFILES
from jobs.choosing import check_fit, gpus_of, settled, shaped
from jobs.jobfile import amended
from jobs.launch import resume_run
from pipeline import books
from pipeline.config import RunConfig, StorageConfig
from pipeline.errors import ConfigError
from pipeline.model import ModelRef
from pipeline.placement import ACCELERATOR_LABEL

from . import architectures as published
from .helpers import job, refusal

H100 = Node(8, 8, frozenset({"H100"}), id="a")
HEAD = Node(4, 0, id="head")


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": range(300), "text": [f"row {i} " + "word " * (i % 200) for i in range(300)]}), file)
    return file


def auto_job(rows: Path, model: str = "scout-int4", engine: Any = "auto", **changes: Any) -> RunConfig:
    output = {"uri": str(rows.parent / "out")}
    return job(**{"input": {"uri": str(rows)}, "model": model, "engine": engine, "output": output, **changes})


def test_auto_is_a_word_or_a_key_beside_others() -> None:
    assert job(model="scout", engine="auto").engine.auto
    engine = job(model="scout", engine={"auto": True, "kv_cache_dtype": "auto"}).engine
    assert (engine.auto, engine.vllm_args) == (True, {"kv_cache_dtype": "auto"})


def test_auto_for_the_echo_engine_is_refused() -> None:
    assert "the echo engine has none" in refusal(engine={"kind": "echo", "auto": True})


def test_settled_job_has_settings_and_reasons_for_its_gpus(rows: Path) -> None:
    config, reasons = settled(auto_job(rows), parse_gpus("8xH100"))
    assert config.engine.num_gpus == 1
    assert (config.pool.accelerator, config.pool.min, config.pool.max) == ("H100", 1, 8)
    assert config.engine.vllm_args["max_model_len"] == 32_768
    assert any("8xH100 holds 8 of them" in reason for reason in reasons)


def test_settled_job_keeps_its_own_settings_and_pool(rows: Path) -> None:
    given = auto_job(rows, engine={"auto": True, "tensor_parallel_size": 2}, pool={"max": 3})
    config, reasons = settled(given, parse_gpus("8xH100"))
    assert (config.engine.num_gpus, config.pool.max) == (2, 3)
    assert "Kept as the job has it: tensor_parallel_size 2." in reasons


def test_settled_job_is_the_same_each_time(rows: Path) -> None:
    gpus = parse_gpus("8xH100")
    assert settled(auto_job(rows), gpus) == settled(auto_job(rows), gpus)


def test_settled_job_without_gpus_runs_on_the_cpu_and_says_so(rows: Path) -> None:
    config, reasons = settled(auto_job(rows), None)
    assert config.pool.accelerator is None
    assert config.engine.vllm_args["max_num_seqs"] == 128
    # 1 GiB, vLLM's space for the cache here, over 48 layers of 4 KiB a token
    assert config.engine.vllm_args["max_model_len"] == 2**30 // (48 * 4096) // 128 * 128
    assert "engines run on the CPU" in reasons[0]


def test_settled_job_of_an_unknown_model_is_refused_with_a_way_out(rows: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settled(auto_job(rows, model="owner/other"), parse_gpus("8xH100"))
    assert "Nothing can be chosen: the model's config.json is not at hand" in str(caught.value)
    assert "Give engine.tensor_parallel_size" in str(caught.value)


def test_run_opened_with_a_choice_goes_on_with_it_whatever_the_gpus_are(rows: Path) -> None:
    ref = ModelRef("scout-int4", "hub", "sha256:1")
    config, reasons = settled(auto_job(rows), parse_gpus("8xH100"))
    begun = books.prepare(config, ref, choice=reasons)
    begun.lease.release()
    record = json.loads((rows.parent / "out" / "run.json").read_text())
    assert record["engine_choice"] == list(reasons)
    assert record["config"]["engine"]["kv_cache_dtype"] == config.engine.vllm_args["kv_cache_dtype"]
    assert record["settings"]["engine"]["max_model_len"] == 32_768

    for gpus in (parse_gpus("2xH200"), None):
        again, said = settled(auto_job(rows), gpus)
        assert (again.engine.vllm_args, said) == (config.engine.vllm_args, ())
        resumed = books.prepare(again, ref)
        resumed.lease.release()
        assert resumed.run_id == begun.run_id

    changed, _ = settled(auto_job(rows, engine={"auto": True, "max_num_seqs": 8}), None)
    assert changed.engine.vllm_args == {**config.engine.vllm_args, "max_num_seqs": 8}


@pytest.mark.parametrize(
    ("nodes", "accelerator", "expected"),
    [
        ([HEAD], None, None),
        ([HEAD, H100, H100], None, Gpus(GPUS["H100"], 2, 8)),
        ([HEAD, H100], "H100", Gpus(GPUS["H100"], 1, 8)),
        ([H100, Node(8, 4, frozenset({"H100"}), id="half")], None, Gpus(GPUS["H100"], 1, 8)),
        ([Node(8, 4, labels=frozenset({(ACCELERATOR_LABEL, "H200")}), id="l")], None, Gpus(GPUS["H200"], 1, 4)),
    ],
)
def test_gpus_of_a_cluster_are_those_a_job_may_use(
    nodes: list[Node], accelerator: str | None, expected: Gpus | None
) -> None:
    assert gpus_of(nodes, [], accelerator) == expected


def test_gpus_of_a_cluster_that_is_yet_to_grow_are_those_it_may_add() -> None:
    can_come = [Node(8, 8, frozenset({"H100"}), count=2)]
    assert gpus_of([HEAD], can_come, "H100") == Gpus(GPUS["H100"], 2, 8)


@pytest.mark.parametrize(
    ("nodes", "accelerator", "why"),
    [
        ([H100, Node(8, 8, frozenset({"A100"}), id="b")], None, "several kinds of GPUs: A100, H100"),
        ([HEAD], "H100", "has no H100, and none that it may add"),
        ([Node(8, 8, frozenset({"T4"}), id="t")], None, "no figures for a GPU named T4"),
    ],
)
def test_gpus_of_a_cluster_that_nothing_can_be_chosen_for_are_refused(
    nodes: list[Node], accelerator: str | None, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        gpus_of(nodes, [], accelerator)


@pytest.mark.parametrize(("model", "gpus"), [("scout-int4", 1), ("maverick", 8), ("maverick-bf16", 16)])
def test_shape_is_known_before_there_is_a_cluster(rows: Path, model: str, gpus: int) -> None:
    rows.unlink()  # nor are there rows
    config = auto_job(rows, model, pool={"accelerator": "H100"})
    assert shaped(config).engine.num_gpus == gpus
    assert shaped(config).pool == config.pool


def test_shape_of_a_job_that_fits_nowhere_is_refused(rows: Path) -> None:
    with pytest.raises(ConfigError, match="does not fit 4x8xL40S"):
        shaped(
            auto_job(rows, "maverick-bf16", {"auto": True, "pipeline_parallel_size": 1}, pool={"accelerator": "L40S"})
        )


def test_shape_of_a_job_that_chooses_nothing_is_its_own(rows: Path) -> None:
    for config in (auto_job(rows, engine={}, pool={"accelerator": "H100"}), auto_job(rows)):
        assert shaped(config) is config


def engine_job(model: str, accelerator: str = "H100", **engine: Any) -> RunConfig:
    return with_profile(job(model=model, engine=engine, pool={"accelerator": accelerator}))


@pytest.mark.parametrize("name", [name for name, p in PROFILES.items() if not p.refused])
def test_every_profile_fits_its_h100s_with_room_to_spare(name: str) -> None:
    assert check_fit(engine_job(name)) is None


@pytest.mark.parametrize(
    ("model", "engine", "why"),
    [
        (
            "maverick",
            {"tensor_parallel_size": 4},
            r"the weights take 97\.0 GiB on each GPU \(TP4\), more than the 72\.9",
        ),
        ("maverick", {"tensor_parallel_size": 16}, "40 attention heads are not divisible by tensor_parallel_size 16"),
        ("maverick", {"max_model_len": 2_000_000}, "beyond the model's own 1,048,576"),
        ("scout-int4", {"max_model_len": 1_000_000}, "a request of 1,000,000 tokens needs"),
    ],
)
def test_engine_that_cannot_fit_is_refused_in_a_sentence(model: str, engine: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_fit(engine_job(model, **engine))


@pytest.mark.parametrize("max_num_seqs", [512, 768])
def test_engine_near_the_limit_is_warned_of_on_either_side(max_num_seqs: int) -> None:
    assert "By our arithmetic" in str(check_fit(engine_job("scout-int4", max_num_seqs=max_num_seqs)))


@pytest.mark.parametrize(
    "config",
    [
        engine_job("maverick", tensor_parallel_size=1, quantization="fp8"),
        engine_job("maverick", tensor_parallel_size=1, kv_cache_dtype="turboquant_k8v4"),
        engine_job("maverick", "T4"),
        engine_job("owner/other"),
        job(model="maverick", engine={"kind": "echo"}, pool={"accelerator": "H100"}),
        with_profile(job(model="maverick", engine={})),
    ],
    ids=["quantization", "cache", "gpu", "model", "echo", "cpu"],
)
def test_engine_that_nobody_here_can_judge_is_left_to_vllm(config: RunConfig) -> None:
    assert check_fit(config) is None


def test_engine_of_a_local_model_is_judged_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.LLAMA_3_70B))
    with pytest.raises(ConfigError, match="the weights take 131"):
        check_fit(engine_job(str(tmp_path)))


def test_resume_with_an_engine_that_cannot_fit_is_refused_and_the_run_left_as_it_is(rows: Path) -> None:
    config = auto_job(
        rows, "maverick", {"tensor_parallel_size": 8, "max_model_len": 4096}, pool={"accelerator": "H100"}
    )
    books.prepare(config, ModelRef("maverick", "hub", "sha256:1")).lease.release()
    before = (rows.parent / "out" / "run.json").read_bytes()

    def narrower(begun: RunConfig) -> RunConfig:
        return amended(begun, ["engine.tensor_parallel_size=4"])

    with pytest.raises(ConfigError, match=r"the weights take 97\.0 GiB on each GPU \(TP4\)"):
        resume_run(str(rows.parent / "out"), StorageConfig(), amend=narrower)
    assert (rows.parent / "out" / "run.json").read_bytes() == before
