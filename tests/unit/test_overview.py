from dataclasses import asdict
from typing import Any

import pytest

from pipeline.overview import Overview
from pipeline.progress import Progress

FIRST: dict[str, Any] = {
    "window_s": 10.0,
    "rows": 300,
    "busy_s": 9.0,
    "render_s": 4.0,
    "image_s": 3.0,
    "prepare_s": 2.0,
    "parse_s": 0.5,
    "write_s": 0.25,
    "prompt_tokens": 1000,
    "cached_tokens": 250,
    "output_tokens": 500,
    "rows_reused": 7,
    "running": 8,
    "waiting": 3,
    "kv_use": 0.4,
    "node": "0123",
    "max_num_seqs": 64,
}
SECOND: dict[str, Any] = {**FIRST, "window_s": 5.0, "busy_s": 3.0, "kv_use": 0.9, "cached_tokens": 750}


def test_overview_of_two_engines_sums_over_the_longest_window() -> None:
    assert asdict(Overview.of([FIRST, SECOND], read_s=1.5)) == {
        "window_s": 10.0,
        "rows_per_s": 60.0,
        "prompt_tokens_per_s": 200.0,
        "output_tokens_per_s": 100.0,
        "busy": 0.8,
        "prefix_hit_rate": 0.5,
        "running": 16,
        "waiting": 6,
        "kv_use": 0.9,
        "rows_reused": 14,
        "stage_seconds": {
            "read": 1.5,
            "render": 8.0,
            "images": 6.0,
            "prepare": 4.0,
            "generate": 12.0,
            "parse": 1.0,
            "write": 0.5,
        },
    }


def test_overview_of_an_engine_that_tells_little_leaves_the_rest_unknown() -> None:
    view = Overview.of([{"window_s": 2.0, "rows": 10, "busy_s": 1.0, "output_tokens": 40, "running": 0}])
    assert (view.rows_per_s, view.output_tokens_per_s, view.busy, view.running) == (5.0, 20.0, 0.5, 0)
    assert (view.prompt_tokens_per_s, view.prefix_hit_rate, view.kv_use, view.waiting) == (None, None, None, None)
    assert view.stage_seconds == {"generate": 1.0}


@pytest.mark.parametrize("engines", [[], [{"node": "0123", "start_s": 3.0}], [{"window_s": 0.0, "rows": 0}]])
def test_overview_before_the_first_answer_has_no_speeds(engines: list[dict[str, Any]]) -> None:
    view = Overview.of(engines)
    assert (view.window_s, view.rows_per_s, view.busy, view.prefix_hit_rate) == (0.0, None, None, None)


def test_overview_of_an_engine_without_prompt_tokens_yet_has_no_hit_rate() -> None:
    assert Overview.of([{**FIRST, "prompt_tokens": 0, "cached_tokens": 0}]).prefix_hit_rate is None


def test_progress_as_json_has_the_views_of_all_engines_and_of_each() -> None:
    made = Progress(engines={"a": FIRST, "b": SECOND, "c": {"node": "0123"}}, read_s=1.5).to_json()
    assert made["overview"]["rows_per_s"] == made["rows_per_s"] == 60.0
    assert made["overview"]["stage_seconds"]["read"] == 1.5
    assert list(made["by_engine"]) == ["a", "b"]  # the third has not answered yet
    assert made["by_engine"]["b"]["rows_per_s"] == 60.0
    assert "read" not in made["by_engine"]["b"]["stage_seconds"]
    assert made["bottleneck"].startswith("Engines were busy 80% of the time")


def test_progress_without_engines_has_nothing_to_say() -> None:
    made = Progress().to_json()
    assert (made["bottleneck"], made["by_engine"], made["overview"]["busy"]) == (None, {}, None)
