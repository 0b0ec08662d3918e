"""`engine: auto` for a job: from its rows and GPUs to settings that stand from then on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.gpus import parse_gpus
from cluster.placement import Node
from jobs.choosing import ON_THE_CPU, check_fit, gpus_of, settled
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

H100 = frozenset({"H100"})


def job(folder: Path, **sections: Any) -> RunConfig:
    source = folder / "rows.parquet"
    pq.write_table(pa.table({"text": ["some words " * 20] * 50}), source)
    return RunConfig.model_validate(
        {
            "input": {"uri": str(source)},
            "prompt": {"user": "{{ text }}"},
            "model": "maverick",
            "engine": "auto",
            "sampling": {"max_tokens": 64},
            "output": {"uri": str(folder / "out")},
            **sections,
        }
    )


def test_settled_fills_the_engine_the_pool_and_the_reasons(tmp_path: Path) -> None:
    config, reasons = settled(job(tmp_path), parse_gpus("2x8xH100"))
    assert config.engine.auto and config.engine.vllm_args["tensor_parallel_size"] == 8
    assert config.engine.vllm_args["max_model_len"] == 2048
    assert (config.pool.accelerator, config.pool.ceiling) == ("H100", 2)
    assert any("2x8xH100 holds 2" in reason for reason in reasons)


def test_settled_keeps_what_the_job_says(tmp_path: Path) -> None:
    own = job(tmp_path, engine={"auto": True, "max_num_seqs": 24}, pool={"max": 1})
    config, _ = settled(own, parse_gpus("2x8xH100"))
    assert (config.engine.vllm_args["max_num_seqs"], config.pool.ceiling) == (24, 1)


def test_settled_without_gpus_leaves_the_cpu_its_defaults(tmp_path: Path) -> None:
    given = job(tmp_path)
    assert settled(given, None) == (given, (ON_THE_CPU,))


def test_settled_takes_the_choice_of_an_earlier_session(tmp_path: Path) -> None:
    first, _ = settled(job(tmp_path), parse_gpus("8xH100"))
    record = {"config": first.model_dump(mode="json")}
    wanted = (
        "schema_version",
        "run_id",
        "name",
        "status",
        "fingerprint",
        "settings",
        "columns",
        "read_schema",
        "model",
    )
    record |= dict.fromkeys((*wanted, "shards", "rows", "created_at", "sessions"), "x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text(json.dumps(record))
    again, reasons = settled(job(tmp_path), parse_gpus("8xB200"))
    assert (again.engine, again.pool.accelerator, reasons) == (first.engine, "H100", ())


def test_settled_for_a_model_without_a_known_config_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Nothing can be chosen: the model's config"):
        settled(job(tmp_path, model="owner/unknown"), parse_gpus("8xH100"))


def test_auto_and_echo_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the echo engine has none"):
        job(tmp_path, engine={"auto": True, "kind": "echo"})


@pytest.mark.parametrize(
    ("nodes", "accelerator", "expected"),
    [
        ([Node(8, 0)], None, "None"),
        ([Node(8, 0), Node(96, 8, H100), Node(96, 8, H100)], None, "2x8xH100"),
        ([Node(96, 8, H100), Node(96, 8, frozenset({"A100"}))], "A100", "8xA100"),
    ],
)
def test_gpus_of_a_cluster_are_those_the_job_may_use(nodes: list[Node], accelerator: str | None, expected: str) -> None:
    assert str(gpus_of(nodes, accelerator)) == expected


@pytest.mark.parametrize(
    ("nodes", "accelerator", "said"),
    [
        ([Node(96, 8, H100), Node(96, 8, frozenset({"A100"}))], None, "several kinds of GPUs: A100, H100"),
        ([Node(8, 0)], "H100", "has no H100 now"),
        ([Node(8, 1, frozenset({"T4"}))], None, "no figures for a GPU named T4"),
    ],
)
def test_gpus_of_a_cluster_that_leaves_the_choice_open_is_refused(
    nodes: list[Node], accelerator: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        gpus_of(nodes, accelerator)


def test_check_fit_refuses_what_cannot_fit_with_numbers(tmp_path: Path) -> None:
    config = job(tmp_path, engine={"tensor_parallel_size": 4, "max_model_len": 8192}, pool={"accelerator": "H100"})
    with pytest.raises(ConfigError, match=r"the weights take 97\.0 GiB on each GPU \(TP4\)"):
        check_fit(config)


def test_check_fit_only_warns_near_the_limit(tmp_path: Path) -> None:
    engine = {"tensor_parallel_size": 1, "max_model_len": 32768, "max_num_seqs": 1024, "kv_cache_dtype": "auto"}
    config = job(tmp_path, model="scout-int4", engine=engine, pool={"accelerator": "H100"})
    doubt = check_fit(config)
    assert doubt is not None and "does not quite fit" in doubt


def test_check_fit_says_nothing_of_a_cpu_or_an_unknown_model(tmp_path: Path) -> None:
    assert check_fit(job(tmp_path)) is None
    assert check_fit(job(tmp_path, model="owner/unknown", engine={}, pool={"accelerator": "H100"})) is None
