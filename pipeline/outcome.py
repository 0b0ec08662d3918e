"""What a run took, and how that compares with what was expected of it. Pure: from `run.json` as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config import RunConfig

Record = Mapping[str, Any]


def spent(sessions: Sequence[Record], config: RunConfig) -> dict[str, float | None]:
    """Seconds of all sessions that have ended, and the GPU-hours that their engines held, from start to last answer; None
    for engines on the CPU."""
    seconds = sum(s.get("seconds", 0.0) for s in sessions)
    engines = [e for s in sessions for e in (s.get("engines") or {}).values()]
    held_s = sum(e.get("start_s", 0.0) + e.get("window_s", 0.0) for e in engines)
    gpu_hours = None if config.pool.accelerator is None else round(held_s * config.engine.num_gpus / 3600, 4)
    return {"seconds": round(seconds, 2), "gpu_hours": gpu_hours}


def compared(estimate: Record | None, took: Record | None, totals: Record | None) -> str | None:
    """What was expected and what came, in a line; what was expected alone while the run is not done. None where nothing was
    expected."""
    if estimate is None:
        return None
    pairs = (
        ("seconds", estimate.get("eta_s"), took, "seconds", "{:,.0f}"),
        ("GPU-hours", estimate.get("gpu_hours"), took, "gpu_hours", "{:,.2f}"),
        ("prompt tokens", _total(estimate, "prompt_tokens"), totals, "prompt_tokens", "{:,.0f}"),
        ("output tokens", _total(estimate, "output_tokens"), totals, "output_tokens", "{:,.0f}"),
        ("rows quarantined", estimate.get("quarantined_rows"), totals, "rows_quarantined", "{:,.0f}"),
    )
    parts = [
        _pair(name, expected, came[key] if came else None, shown)
        for name, expected, came, key, shown in pairs
        if expected is not None
    ]
    return "; ".join(parts) or None


def _total(estimate: Record, name: str) -> Record | None:
    found = estimate.get(name)
    if found is None:
        return None
    if name == "prompt_tokens":
        return {"low": found["total_low"], "expected": found["total"], "high": found["total_high"]}
    return {**found["total"], "is_upper_bound": found["is_upper_bound"]}


def _pair(name: str, expected: Record, came: float | None, shown: str) -> str:
    low, middle, high = (shown.format(expected[k]) for k in ("low", "expected", "high"))
    if expected.get("is_upper_bound"):
        said = f"at most {high} expected"
    else:
        said = f"{middle} expected" + (f" ({low} to {high})" if low != high else "")
    return f"{name}: {said}" + (f", {shown.format(came)} came" if came is not None else "")
