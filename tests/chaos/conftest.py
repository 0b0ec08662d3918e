"""Where runs are killed: cages, a small cluster that outlives the runs on it, and the count of what was done to them."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cage import Cage, Nodes

FAULTS: pytest.StashKey[Counter[str]] = pytest.StashKey()


def kind_of(fault: dict[str, Any]) -> str:
    if "kind" in fault:
        return str(fault["kind"])
    verb = "killed" if fault["act"] == "kill" else "frozen"
    what = "read" if fault["object"] == "read" else f"put of {fault['object']}"
    return f"process {verb} {fault['moment']} the {what}"


def _count(config: pytest.Config, cage: Cage) -> None:
    config.stash.setdefault(FAULTS, Counter()).update(kind_of(fault) for fault in cage.injected())


@pytest.fixture
def cage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Cage]:
    """For commands that start a Ray of their own, or none."""
    made = Cage(tmp_path / "cage")
    try:
        yield made
    finally:
        made.end()
        _count(request.config, made)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Cage]:
    """A cage with a cluster of one node, which commands in it use."""
    made = Cage(tmp_path_factory.mktemp("ground") / "cage")
    try:
        made.environment["RAY_ADDRESS"] = Nodes(made, {"num_cpus": 1}).address
        yield made
    finally:
        made.end()
        _count(request.config, made)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    faults = config.stash.get(FAULTS, Counter())
    if faults:
        terminalreporter.section("faults injected")
        for kind, count in sorted(faults.items()):
            terminalreporter.write_line(f"{count:5}  {kind}")
        terminalreporter.write_line(f"{sum(faults.values()):5}  in all")
