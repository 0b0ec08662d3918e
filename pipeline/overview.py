"""What the figures of some engines come to together: speeds, shares of their time, and the seconds of each stage. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

STAGES = {
    "render": "render_s",
    "images": "image_s",
    "prepare": "prepare_s",
    "generate": "busy_s",
    "parse": "parse_s",
    "write": "write_s",
}
"""The stages of an engine's rows, and the figure that counts each one's seconds. Images are a part of rendering."""

Figures = Mapping[str, Any]
"""What one engine tells, see `pipeline.ledger.Ledger.engine_figures`."""


def total(engines: Collection[Figures], name: str) -> float | None:
    """A figure summed over the engines that tell it; None if none does."""
    told = [float(e[name]) for e in engines if e.get(name) is not None]
    return sum(told) if told else None


def share(part: float | None, whole: float | None) -> float | None:
    """A part of a whole, from 0 to 1; None where either is unknown or there is no whole."""
    return None if part is None or not whole else min(1.0, part / whole)


@dataclass(frozen=True, slots=True)
class Overview:
    """One or more engines at a glance. None: unknown, or nothing yet to tell it from."""

    window_s: float
    """The longest of their windows, over which speeds are taken; 0 before the first answer."""
    rows_per_s: float | None
    """Rows that the engines answered; rows with another row's answer are not among them."""
    prompt_tokens_per_s: float | None
    output_tokens_per_s: float | None
    busy: float | None
    """Share of their windows that they spent stepping, 0 to 1. A step with few requests counts as much as a full one."""
    prefix_hit_rate: float | None
    """Share of prompt tokens that the prefix cache had, 0 to 1."""
    running: int | None
    """Requests in the engines' batches when they last told, summed; likewise `waiting`, for a place there."""
    waiting: int | None
    kv_use: float | None
    """Share of the KV cache in use when they last told, 0 to 1, of the engine where it is largest."""
    rows_reused: int
    """Rows that were given another row's answer."""
    stage_seconds: dict[str, float]
    """Seconds by stage, of those that are known: read, render, images (a part of render), prepare, generate, parse,
    write. Stages run side by side, and some on several threads, so that their sum is no time on a clock."""

    @classmethod
    def of(cls, engines: Collection[Figures], *, read_s: float | None = None) -> "Overview":
        """The overview of these engines. `read_s` counts the seconds of reading, which no engine knows."""
        window_s = max((float(e.get("window_s", 0.0)) for e in engines), default=0.0)
        running, waiting = total(engines, "running"), total(engines, "waiting")
        seconds = {"read": read_s, **{stage: total(engines, figure) for stage, figure in STAGES.items()}}

        def speed(name: str) -> float | None:
            count = total(engines, name)
            return None if count is None or not window_s else round(count / window_s, 1)

        return cls(
            window_s=round(window_s, 3),
            rows_per_s=speed("rows"),
            prompt_tokens_per_s=speed("prompt_tokens"),
            output_tokens_per_s=speed("output_tokens"),
            busy=_rounded(share(total(engines, "busy_s"), total(engines, "window_s"))),
            prefix_hit_rate=_rounded(share(total(engines, "cached_tokens"), total(engines, "prompt_tokens"))),
            running=None if running is None else int(running),
            waiting=None if waiting is None else int(waiting),
            kv_use=_rounded(max((float(e["kv_use"]) for e in engines if "kv_use" in e), default=None)),
            rows_reused=int(total(engines, "rows_reused") or 0),
            stage_seconds={stage: round(s, 2) for stage, s in seconds.items() if s is not None},
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
