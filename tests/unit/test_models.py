from pathlib import Path
from typing import Any

import pytest

import jobs.demo
from cluster.models import resolve_model, with_profile
from cluster.profiles import PROFILES, find_profile
from jobs.choosing import check_fit
from jobs.inspect import profile_facts
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.model import ModelRef

from .helpers import job

DEMO = Path(str(jobs.demo.__file__)).parent / "model"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*args: Any) -> ModelRef:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("cluster.models._from_hub", ask)
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))


def vllm_job(model: str, **engine: Any) -> RunConfig:
    return job(model=model, engine=engine)


BEHEMOTHS = ["behemoth", "Behemoth", "llama-4-behemoth", "meta-llama/Llama-4-Behemoth-288B-16E-Instruct"]


@pytest.mark.parametrize("name", BEHEMOTHS)
def test_behemoth_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_profile(vllm_job(name))
    message = str(caught.value)
    assert "never released its weights" in message
    assert "Use `maverick`, or another model" in message
    assert f"model: {name}" in message


def test_folder_that_is_named_after_behemoth_is_a_model_of_its_own(tmp_path: Path) -> None:
    config = vllm_job(str(tmp_path / "distilled-from-behemoth"))
    assert with_profile(config) == config


def test_maverick_profile_fills_engine_settings() -> None:
    args = with_profile(vllm_job("maverick")).engine.vllm_args
    assert args == {"tensor_parallel_size": 8, "kv_cache_dtype": "fp8", "max_model_len": 131_072}


def test_maverick_profile_gives_way_to_the_jobs_settings() -> None:
    engine = with_profile(vllm_job("maverick", tensor_parallel_size=4, dtype="bfloat16", core_process=True)).engine
    assert engine.vllm_args == {
        "tensor_parallel_size": 4,
        "kv_cache_dtype": "fp8",
        "max_model_len": 131_072,
        "dtype": "bfloat16",
    }
    assert engine.core_process is True
    assert engine.num_gpus == 4


def test_maverick_bf16_takes_sixteen_gpus() -> None:
    assert with_profile(vllm_job("maverick-bf16")).engine.num_gpus == 16


def test_profile_leaves_the_rest_of_the_job() -> None:
    config = vllm_job("maverick")
    assert with_profile(config).model_copy(update={"engine": config.engine}) == config


@pytest.mark.parametrize("name", ["maverick", "Maverick", "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"])
def test_profile_is_found_by_name_and_hub_id(name: str) -> None:
    assert find_profile(name) is PROFILES["maverick"]


def test_profile_unknown_is_none_and_changes_nothing() -> None:
    assert find_profile("owner/other") is None
    config = vllm_job("owner/other", dtype="bfloat16")
    assert with_profile(config) is config


def test_every_profile_makes_a_sound_engine_or_says_why_not() -> None:
    for profile in PROFILES.values():
        if profile.refused is None:
            assert profile.hub_id
            gpus = with_profile(vllm_job(profile.name)).engine.num_gpus
            assert str(profile_facts(profile)["gpus"]).startswith(f"{gpus} x H100")
            assert check_fit(vllm_job(profile.name)) is None


@pytest.mark.parametrize(("name", "near"), [("mavrick", "maverick"), ("scout-int", "scout-int4"), ("scot", "scout")])
def test_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_model(vllm_job(name))
    message = str(caught.value)
    assert f"There is no model `{name}`: neither a profile nor a folder. Did you mean `{near}`?" in message
    assert (
        "Profiles: scout, scout-fp8, scout-int4, maverick, maverick-bf16, maverick-int4, behemoth; else a hub"
        in message
    )


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~/none"])
def test_model_path_that_is_no_folder_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="neither a profile nor a folder"):
        resolve_model(vllm_job(name))


def test_echo_needs_no_model() -> None:
    ref = resolve_model(job())
    assert (ref.name, ref.location, ref.weights_digest) == ("echo", "echo", None)


def test_echo_takes_no_profile() -> None:
    config = job(model="behemoth")
    assert with_profile(config) is config
    assert resolve_model(config).name == "behemoth"


def test_local_folder_is_digested() -> None:
    ref = resolve_model(vllm_job(str(DEMO)))
    assert ref.location == str(DEMO)
    assert str(ref.weights_digest).startswith("sha256:")
    assert ref.licence is None


def test_local_folder_with_a_licence_says_so(tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "LICENSE").write_text("LLAMA 4 COMMUNITY LICENSE AGREEMENT\nmore\n")
    assert resolve_model(vllm_job(str(tmp_path))).licence == "LLAMA 4 COMMUNITY LICENSE AGREEMENT"


def test_local_folder_with_an_empty_licence_has_none(tmp_path: Path) -> None:
    for file in DEMO.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "LICENSE").write_text("\n")
    assert resolve_model(vllm_job(str(tmp_path))).licence is None


def test_hub_id_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def ask(name: str, hub_id: str, licence: str | None) -> ModelRef:
        asked.append((name, hub_id, licence))
        return ModelRef(name, hub_id)

    monkeypatch.setattr("cluster.models._from_hub", ask)
    resolve_model(vllm_job("scout"))
    resolve_model(vllm_job("owner/other"))
    assert asked == [
        ("scout", "meta-llama/Llama-4-Scout-17B-16E-Instruct", "Llama 4 Community License"),
        ("owner/other", "owner/other", None),
    ]
