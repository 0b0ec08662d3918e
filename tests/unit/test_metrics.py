from collections.abc import Mapping

import pytest

from pipeline.host.host import GAUGES
from pipeline.metrics import METRICS, Meter, Metric

TAGS = {"run": "run-1", "engine": "echo #1"}


class Made:
    """What a metric was told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def inc(self, value: float, tags: Mapping[str, str]) -> None:
        assert tags == TAGS
        self.told.append(("inc", value))

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        assert tags == TAGS
        self.told.append(("set", value))


@pytest.fixture
def made() -> dict[str, Made]:
    return {metric.name: Made() for metric in METRICS}


def test_meter_of_sums_counts_what_they_grow(made: dict[str, Made]) -> None:
    meter = Meter("run-1", lambda metric: made[metric.name])
    for rows in (10, 10, 25):
        meter.take("echo #1", {"rows": rows, "window_s": 1.0})
    assert made["herd_rows_total"].told == [("inc", 10.0), ("inc", 15.0)]


def test_meter_of_gauges_sets_what_they_are(made: dict[str, Made]) -> None:
    meter = Meter("run-1", lambda metric: made[metric.name])
    for kv_use in (0.5, 0.5, 0.0):
        meter.take("echo #1", {"kv_use": kv_use})
    assert made["herd_kv_use"].told == [("set", 0.5), ("set", 0.5), ("set", 0.0)]
    assert [name for name, m in made.items() if m.told] == ["herd_kv_use"]  # what is not told is not exported


def test_meter_whose_metrics_fail_goes_on_with_the_others(made: dict[str, Made]) -> None:
    def make(metric: Metric) -> Made:
        if metric.figure == "running":
            raise RuntimeError("no such metric")
        return made[metric.name]

    made["herd_rows_total"].inc = None  # type: ignore[method-assign, assignment]
    Meter("run-1", make).take("echo #1", {"rows": 1, "running": 1, "waiting": 1})
    assert made["herd_requests_waiting"].told == [("set", 1.0)]


def test_metrics_have_names_of_their_own_and_the_conventional_endings() -> None:
    assert len({m.name for m in METRICS}) == len({m.figure for m in METRICS}) == len(METRICS)
    assert all(m.name.startswith("herd_") and m.name.endswith("_total") != m.is_gauge for m in METRICS)
    assert all(m.name.endswith("_seconds_total") == m.figure.endswith("_s") for m in METRICS)
    assert {m.figure for m in METRICS if m.is_gauge} == GAUGES
