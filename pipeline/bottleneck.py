"""What bounds a run, and what to do about it, in one sentence from the engines' own figures. Pure.

An engine steps, or waits for rows that are being rendered and prepared, or waits with no row on its way. Whichever of
the waits is worth a remedy is named, the longer one first; else the engines themselves are the limit.
"""

from collections.abc import Collection

from pipeline.overview import Figures, total

WORTH = 0.1
"""Share of the engines' time that a wait must take to be named."""
MIN_WINDOW_S = 1.0
"""Seconds that the engines' windows must have in all: shares of less say nothing."""
FULL = 0.95
"""Share of the KV cache in use, beyond which requests that wait do so for room."""


def bottleneck(engines: Collection[Figures]) -> str | None:
    """The sentence; None until the engines have answered for a while."""
    window_s = total(engines, "window_s")
    if window_s is None or window_s < MIN_WINDOW_S:
        return None
    for_render, for_rows = (
        min(1.0, (total(engines, name) or 0.0) / window_s) for name in ("render_wait_s", "rows_wait_s")
    )
    if max(for_render, for_rows) >= WORTH:
        return _waits_for_rendering(engines, for_render) if for_render >= for_rows else _waits_for_rows(for_rows)
    return _no_room(engines) or _busy(min(1.0, (total(engines, "busy_s") or 0.0) / window_s))


def _waits_for_rendering(engines: Collection[Figures], fraction: float) -> str:
    images, rendering, preparing = (total(engines, name) or 0.0 for name in ("image_s", "render_s", "prepare_s"))
    waited = f"Engines waited {fraction:.0%} of the time for"
    if images > (rendering + preparing) / 2:
        return f"{waited} images to be fetched and decoded: raise render.concurrency"
    if preparing >= rendering - images:
        return f"{waited} chat templates, tokens and image preprocessing: raise render.processes"
    return f"{waited} prompt templates to be filled: raise render.processes, or simplify prompt.user"


def _waits_for_rows(fraction: float) -> str:
    return (
        f"Engines waited {fraction:.0%} of the time for rows to be read from storage: raise pool.shards_in_flight; row "
        "groups of about shard.max_rows rows are read fastest"
    )


def _no_room(engines: Collection[Figures]) -> str | None:
    """The sentence for the fullest engine, if requests wait for its KV cache."""
    full = [e for e in engines if e.get("kv_use", 0.0) >= FULL and e.get("waiting", 0) > 0]
    if not full:
        return None
    use, waiting = max(float(e["kv_use"]) for e in full), int(total(full, "waiting") or 0)
    return (
        f"Engines have no room: KV cache {use:.0%} used with {waiting:,} requests waiting: raise "
        "engine.gpu_memory_utilization or engine.tensor_parallel_size, or lower sampling.max_tokens"
    )


def _busy(fraction: float) -> str:
    return (
        f"Engines were busy {fraction:.0%} of the time: they are the limit; more rows/s need more engines (pool.max) or a "
        "larger engine.max_num_seqs"
    )
