"""The dashboard in `cluster/grafana` against the metrics that there are."""

import json
import re
from typing import Any

from pipeline.metrics import METRICS, PREFIX, TAGS
from tests.conftest import REPOSITORY

DASHBOARD: dict[str, Any] = json.loads((REPOSITORY / "cluster/grafana/herd.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPORTED = {PREFIX + metric.name for metric in METRICS}


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ray_)?herd_\w+", text))


def test_dashboard_names_only_metrics_that_are_exported() -> None:
    queries = [v["definition"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    assert len(queries) == 2
    assert set().union(*map(names, [*EXPRESSIONS, *queries])) <= EXPORTED


def test_dashboard_shows_every_metric() -> None:
    assert set().union(*map(names, EXPRESSIONS)) == EXPORTED


def test_dashboard_counts_rates_of_counters_and_never_of_gauges() -> None:
    gauges = {PREFIX + m.name for m in METRICS if m.is_gauge}
    for expression in EXPRESSIONS:
        for function, name in re.findall(r"(\w+) ?\((ray_herd_\w+)\{", expression):
            assert (function in ("sum", "max")) == (name in gauges), expression


def test_dashboard_filters_by_run_and_engine_and_lets_the_source_be_chosen() -> None:
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", *TAGS}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for expression in EXPRESSIONS:
        assert expression.count("ray_herd_") == expression.count('{run=~"$run", engine=~"$engine"}')
    sources = [t["datasource"]["uid"] for p in DASHBOARD["panels"] for t in p["targets"]]
    assert set(sources) == {"${datasource}"}


def test_dashboard_is_one_that_grafana_can_import() -> None:
    assert DASHBOARD["schemaVersion"] >= 39 and DASHBOARD["title"] == "Herd"
    panels = DASHBOARD["panels"]
    assert [p["id"] for p in panels] == list(range(1, len(panels) + 1))
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in panels)
    for panel in panels:
        assert len({t["refId"] for t in panel["targets"]}) == len(panel["targets"])
        assert all(t["expr"].count("(") == t["expr"].count(")") for t in panel["targets"])
