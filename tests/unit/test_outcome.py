from typing import Any

from pipeline.outcome import compared, spent

from .helpers import job

ESTIMATE: dict[str, Any] = {
    "eta_s": {"low": 50, "expected": 60, "high": 90},
    "gpu_hours": None,
    "prompt_tokens": {"total": 1000, "total_low": 900, "total_high": 1100},
    "output_tokens": {"total": {"low": 10, "expected": 5120, "high": 5120}, "is_upper_bound": True},
    "quarantined_rows": {"low": 2, "expected": 2, "high": 2},
}


def test_spent_adds_sessions_and_what_their_engines_held() -> None:
    engines = {"a": {"start_s": 300, "window_s": 600}, "b": {"start_s": 300, "window_s": 0}}
    sessions = ({"seconds": 1000.0, "engines": engines}, {"seconds": 10.5}, {"started_at": "now"})
    on_gpus = job(pool={"accelerator": "H100"}, engine={"kind": "echo", "tensor_parallel_size": 8})
    assert spent(sessions, on_gpus) == {"seconds": 1010.5, "gpu_hours": round(1200 * 8 / 3600, 4)}
    assert spent(sessions, job()) == {"seconds": 1010.5, "gpu_hours": None}


def test_compared_names_what_was_expected_and_what_came() -> None:
    totals = {"prompt_tokens": 1010, "output_tokens": 70, "rows_quarantined": 3}
    assert compared(ESTIMATE, {"seconds": 71.4, "gpu_hours": None}, totals) == (
        "seconds: 60 expected (50 to 90), 71 came; prompt tokens: 1,000 expected (900 to 1,100), 1,010 came; "
        "output tokens: at most 5,120 expected, 70 came; rows quarantined: 2 expected, 3 came"
    )


def test_compared_of_a_run_under_way_names_what_is_expected() -> None:
    said = compared(ESTIMATE, None, None)
    assert said is not None and said.startswith("seconds: 60 expected (50 to 90); prompt tokens")


def test_compared_without_an_estimate_is_none() -> None:
    assert compared(None, {"seconds": 1.0, "gpu_hours": None}, {}) is None
