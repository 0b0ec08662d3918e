"""An engine's figures as Prometheus metrics, which Ray's own endpoint on each node exports with `ray_` before their names.

Figures are sums since the engine's start; a counter is moved by what a sum has grown since it was last told.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TAGS = ("run", "engine")
PREFIX = "ray_"
"""What Ray puts before the name of a metric."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What one figure is exported as. A gauge tells of a moment, anything else counts."""

    figure: str
    name: str
    description: str
    is_gauge: bool = False


METRICS = (
    Metric("rows", "herd_rows_total", "Rows that engines answered"),
    Metric("rows_reused", "herd_rows_reused_total", "Rows that were given another row's answer"),
    Metric("prompt_tokens", "herd_prompt_tokens_total", "Prompt tokens of answered rows"),
    Metric("cached_tokens", "herd_cached_tokens_total", "Prompt tokens that the prefix cache had"),
    Metric("output_tokens", "herd_output_tokens_total", "Tokens that engines generated"),
    Metric("busy_s", "herd_engine_busy_seconds_total", "Seconds that engines spent stepping"),
    Metric(
        "render_wait_s",
        "herd_engine_render_wait_seconds_total",
        "Seconds that engines waited for rows to be rendered and prepared",
    ),
    Metric("rows_wait_s", "herd_engine_rows_wait_seconds_total", "Seconds that engines waited with no row on its way"),
    Metric("render_s", "herd_render_seconds_total", "Seconds of rendering, images included, over all threads"),
    Metric("image_s", "herd_image_seconds_total", "Seconds of fetching and decoding images, over all threads"),
    Metric("prepare_s", "herd_prepare_seconds_total", "Seconds of chat templates, tokens and image preprocessing"),
    Metric("write_s", "herd_write_seconds_total", "Seconds of committing shards, over all threads"),
    Metric("deaths", "herd_engine_deaths_total", "Engines' processes that died or were killed because they hung"),
    Metric("running", "herd_requests_running", "Requests in the engine's batch", is_gauge=True),
    Metric("waiting", "herd_requests_waiting", "Requests that wait in the engine", is_gauge=True),
    Metric("kv_use", "herd_kv_use", "Share of the KV cache in use, 0 to 1", is_gauge=True),
)

Make = Callable[[Metric], Any]


def ray_metric(metric: Metric) -> Any:
    """The metric as an object of `ray.util.metrics`. Needs Ray in this process."""
    from ray.util.metrics import Counter, Gauge

    return (Gauge if metric.is_gauge else Counter)(metric.name, metric.description, TAGS)


class Meter:
    """The metrics of one engine. What goes wrong with a metric costs that metric and nothing else."""

    def __init__(self, run_id: str, make: Make = ray_metric) -> None:
        """`make` gives an object with `inc(value, tags)` for a counter and `set(value, tags)` for a gauge."""
        self._run_id = run_id
        self._made: dict[Metric, Any] = {}
        self._told: dict[str, float] = {}
        self._telling = threading.Lock()
        for metric in METRICS:
            with contextlib.suppress(Exception):
                self._made[metric] = make(metric)

    def take(self, engine: str, figures: Mapping[str, float]) -> None:
        """Exports those figures that have a metric. From any thread."""
        tags = dict(zip(TAGS, (self._run_id, engine), strict=True))
        with self._telling:
            for metric, made in self._made.items():
                if metric.figure in figures:
                    with contextlib.suppress(Exception):
                        self._export(metric, made, float(figures[metric.figure]), tags)

    def _export(self, metric: Metric, made: Any, value: float, tags: Mapping[str, str]) -> None:
        if metric.is_gauge:
            made.set(value, tags)
        elif (grown := value - self._told.get(metric.figure, 0.0)) > 0:
            self._told[metric.figure] = value
            made.inc(grown, tags)
