"""What a cluster gets of a job, and what never goes there."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.parcel import digest, entrypoint, is_job_id, new_id, pack
from cluster.portable import forwarded, is_loopback, portable_job
from cluster.submission import JobState
from jobs.jobfile import load_job
from pipeline.errors import ConfigError

from .helpers import job

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


def refused(names: list[str], environment: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        forwarded(names, environment)
    message = str(caught.value)
    assert not any(value in message for value in environment.values())
    return message


def test_forwarded_gives_the_named_variables_and_no_others() -> None:
    assert forwarded(["AWS_REGION"], {"AWS_REGION": "eu-west-1", "HOME": "/root"}) == {"AWS_REGION": "eu-west-1"}


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "DB_PASSWORD",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "OPENAI_APIKEY",
    ],
)
def test_forwarded_refuses_names_of_secrets_and_says_what_to_do_instead(name: str) -> None:
    message = refused([name], {name: "a-value-to-hide"})
    assert f"--env {name}" in message and "instance role" in message


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "AWS_PROFILE", "NCCL_SOCKET_IFNAME", "KEYBOARD", "AUTHOR"])
def test_forwarded_lets_names_pass_that_only_resemble_secrets(name: str) -> None:
    assert forwarded([name], {name: "false"}) == {name: "false"}


@pytest.mark.parametrize(
    "value",
    ["https://me:hunter22@proxy:3128", "AKIAIOSFODNN7EXAMPLE", "hf_abcdefghijklmnopqrstuv", f"--key={SECRET}"],
)
def test_forwarded_refuses_values_that_look_like_secrets_or_hold_one(value: str) -> None:
    refused(["MY_SETTING"], {"MY_SETTING": value, "AWS_SECRET_ACCESS_KEY": SECRET})


def test_forwarded_refuses_what_is_not_set_and_what_is_the_clusters_own() -> None:
    with pytest.raises(ConfigError, match="not set here"):
        forwarded(["NONE"], {})
    with pytest.raises(ConfigError, match="cluster's own"):
        forwarded(["PYTHONPATH"], {"PYTHONPATH": "/x"})


REMOTE = {"input": {"uri": ["s3://b/in", "/mnt/in"]}, "output": {"uri": "s3://b/out"}}


def test_portable_job_that_is_the_same_anywhere_is_left_alone() -> None:
    given = job(**REMOTE)
    assert portable_job(given, "/home/me", is_here=False) == (given, [])


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"input": {"uri": "data/*.parquet"}}, "input.uri"),
        ({"output": {"uri": "./out"}}, "output.uri"),
        ({"output": {"uri": "~/out"}}, "output.uri"),
        ({"cache": {"uri": "cache"}}, "cache.uri"),
        ({"engine": {"kind": "vllm"}, "model": "./model"}, "model"),
    ],
)
def test_portable_job_with_paths_of_this_machine_is_refused_for_a_cluster_elsewhere(
    changes: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        portable_job(job(**{**REMOTE, **changes}), "/home/me", is_here=False)
    assert f"({where})" in str(caught.value) and "s3://" in str(caught.value)


def test_portable_job_for_a_cluster_here_has_absolute_paths_and_warns() -> None:
    moved, warnings = portable_job(job(input={"uri": "data"}, output={"uri": "../out"}), "/home/me", is_here=True)
    assert moved.input.uri == ["/home/me/data"] and moved.output.uri == "/home/out"
    assert len(warnings) == 2 and "/home/me/data, which every node must have" in warnings[0]


def test_portable_job_takes_a_folder_here_for_a_model_and_a_profile_for_a_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name, moved_to in (("model", str(tmp_path / "model")), ("maverick", "maverick"), ("owner/m", "owner/m")):
        moved, _ = portable_job(job(**REMOTE, engine={"kind": "vllm"}, model=name), str(tmp_path), is_here=True)
        assert moved.model == moved_to


def test_portable_job_with_an_endpoint_of_this_machine_is_refused_for_a_cluster_elsewhere() -> None:
    output = {"uri": "s3://b/out", "storage": {"endpoint_url": "http://localhost:9000"}}
    with pytest.raises(ConfigError, match=r"output\.storage\.endpoint_url"):
        portable_job(job(**{**REMOTE, "output": output}), "/", is_here=False)
    assert portable_job(job(**{**REMOTE, "output": output}), "/", is_here=True)[1] == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://127.0.0.1:8265", True), ("http://localhost:8265", True), ("http://head:8265", False), ("[::1]:80", True)],
)
def test_loopback_is_told_by_the_host(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


def test_pack_lays_out_the_job_and_herd_without_the_demo(tmp_path: Path) -> None:
    given = job(**REMOTE, limits={"drain_s": 5})
    pack(given, tmp_path, with_herd=True)
    assert load_job(str(tmp_path / "job.yaml")) == given
    assert {p.name for p in tmp_path.iterdir()} == {"job.yaml", "pipeline", "cluster", "jobs"}
    assert (tmp_path / "jobs" / "__main__.py").is_file() and not (tmp_path / "jobs" / "demo").exists()
    assert not list(tmp_path.rglob("__pycache__"))
    assert sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()) < 2 * 2**20


def test_pack_without_herd_holds_the_job_alone(tmp_path: Path) -> None:
    pack(job(**REMOTE), tmp_path, with_herd=False)
    assert [p.name for p in tmp_path.iterdir()] == ["job.yaml"]
    assert yaml.safe_load((tmp_path / "job.yaml").read_text())["output"] == {"uri": "s3://b/out"}


def test_digest_is_of_the_whole_job() -> None:
    assert digest(job(**REMOTE)) == digest(job(**REMOTE))
    assert digest(job(**REMOTE)) != digest(job(**REMOTE, pool={"min": 2}))


def test_entrypoint_replaces_its_shell_and_takes_another_interpreter() -> None:
    assert entrypoint(None).startswith("exec ") and entrypoint(None).endswith(" -m jobs run job.yaml --address auto")
    assert entrypoint("/opt/my venv/python", preflight=False) == (
        "exec '/opt/my venv/python' -m jobs run job.yaml --address auto --no-preflight"
    )


def test_job_id_is_known_by_its_form_unless_a_folder_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_id("my.cows-2", datetime(2026, 11, 25, 21, 11, 53, tzinfo=UTC))
    assert made.startswith("herd-my.cows-2-20261125T211153-") and is_job_id(made)
    for name in ("herd-out", "./out", "s3://bucket/herd-cows", "out/" + made):
        assert not is_job_id(name)
    monkeypatch.chdir(tmp_path)
    os.mkdir(made)
    assert not is_job_id(made)


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("succeeded", 0, 0),
        ("failed", 2, 2),
        ("failed", 3, 3),
        ("failed", 4, 4),
        ("failed", 130, 130),
        ("failed", 137, 4),
        ("failed", -9, 4),
        ("failed", 1, 4),
        ("failed", None, 4),
        ("stopped", None, 130),
    ],
)
def test_exit_code_is_the_runs_own(state: str, code: int | None, expected: int) -> None:
    assert JobState("herd-x", state, driver_exit_code=code).exit_code == expected


def test_forwarded_takes_a_value_that_is_given_with_the_name() -> None:
    assert forwarded(["A", "B=x=y", "C="], {"A": "here", "B": "hidden by the given one"}) == {
        "A": "here",
        "B": "x=y",
        "C": "",
    }
