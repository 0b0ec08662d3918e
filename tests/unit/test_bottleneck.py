import re
from typing import Any

import pytest

from pipeline.bottleneck import bottleneck
from pipeline.config import EngineConfig, RunConfig
from pipeline.engine.vllm_names import check_names
from tests.unit.helpers import job

WAITING = {"window_s": 10.0, "busy_s": 6.2, "render_wait_s": 3.8}
CASES: list[tuple[list[dict[str, Any]], str]] = [
    (
        [{**WAITING, "render_s": 8.0, "image_s": 7.0, "prepare_s": 1.0}],
        "Engines waited 38% of the time for images to be fetched and decoded: raise render.concurrency",
    ),
    (
        [{**WAITING, "render_s": 2.0, "image_s": 1.0, "prepare_s": 6.0}],
        "Engines waited 38% of the time for chat templates, tokens and image preprocessing",
    ),
    (
        [{**WAITING, "render_s": 6.0, "image_s": 0.0, "prepare_s": 1.0}],
        "Engines waited 38% of the time for prompt templates to be filled",
    ),
    (
        [{"window_s": 10.0, "busy_s": 7.8, "render_wait_s": 0.1, "rows_wait_s": 2.2}],
        "Engines waited 22% of the time for rows to be read from storage: raise pool.shards_in_flight",
    ),
    (
        [{"window_s": 10.0, "busy_s": 9.7, "render_wait_s": 0.3}],
        "Engines were busy 97% of the time: they are the limit",
    ),
    (
        [{"window_s": 10.0, "busy_s": 9.9, "kv_use": 0.99, "waiting": 1200}, {"window_s": 10.0, "busy_s": 9.9}],
        "Engines have no room: KV cache 99% used with 1,200 requests waiting",
    ),
]


@pytest.mark.parametrize(("engines", "said"), CASES)
def test_bottleneck_of_figures_names_what_bounds_the_run(engines: list[dict[str, Any]], said: str) -> None:
    assert (bottleneck(engines) or "").startswith(said)


@pytest.mark.parametrize(("engines", "said"), CASES)
def test_bottleneck_advises_only_keys_of_the_job_file(engines: list[dict[str, Any]], said: str) -> None:
    keys = re.findall(r"\b([a-z]+)\.([a-z_]+)", bottleneck(engines) or "")
    assert keys
    for section, key in keys:
        if section in ("engine", "sampling"):
            given = {key: 1}
            check_names(
                EngineConfig.model_validate(given if section == "engine" else {}),
                given if section == "sampling" else {},
            )
        else:
            assert key in type(getattr(job(), section)).model_fields
        assert section in RunConfig.model_fields


@pytest.mark.parametrize("engines", [[], [{"node": "0123"}], [{"window_s": 0.9, "busy_s": 0.9}]])
def test_bottleneck_of_less_than_a_second_says_nothing(engines: list[dict[str, Any]]) -> None:
    assert bottleneck(engines) is None


def test_bottleneck_of_several_engines_is_decided_by_their_sum() -> None:
    idle = {"window_s": 10.0, "busy_s": 1.0, "rows_wait_s": 9.0}
    busy = {"window_s": 90.0, "busy_s": 89.0, "rows_wait_s": 0.0}
    assert (bottleneck([idle, busy]) or "").startswith("Engines were busy 90% of the time")
    assert (bottleneck([idle]) or "").startswith("Engines waited 90% of the time for rows")


def test_bottleneck_of_a_full_cache_with_none_waiting_is_the_engines() -> None:
    engine = {"window_s": 10.0, "busy_s": 10.0, "kv_use": 1.0, "waiting": 0}
    assert (bottleneck([engine]) or "").startswith("Engines were busy 100% of the time")
