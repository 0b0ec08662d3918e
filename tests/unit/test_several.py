from types import SimpleNamespace
from typing import Any

import pytest

from jobs.backfill import check_outputs, run_days
from jobs.several import Outcome, attempted, worst
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, HerdError
from pipeline.run import InterruptedRunError
from tests.unit.helpers import job


def finished(*, is_within_limits: bool = True) -> Any:
    return SimpleNamespace(is_within_limits=is_within_limits, figures=None, totals={"rows_in": 3})


def ended(code: int) -> Outcome:
    if code in (0, 3):
        return Outcome("x", "out", finished=finished(is_within_limits=code == 0))
    return Outcome("x", "out", error={2: ConfigError, 4: HerdError, 130: InterruptedRunError}[code]("why"))


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0, 0], 0), ([0, 3], 3), ([3, 2], 2), ([2, 4, 3], 4), ([4, 130, 2], 130), ([0, 2, 0], 2)],
)
def test_worst_of_several_runs_is_the_exit_code(codes: list[int], code: int) -> None:
    assert [ended(c).exit_code for c in codes] == codes
    assert worst(map(ended, codes)) == code


def test_outcome_as_json_has_the_totals_or_the_sentence() -> None:
    assert ended(0).to_json()["rows_in"] == 3
    assert ended(2).to_json()["error"] == "why."
    assert Outcome("x", "out", note="not run").words == "not run"


def test_attempt_that_fails_is_an_outcome_and_a_fault_of_ours_is_not() -> None:
    def fail(e: Exception) -> Any:
        raise e

    assert attempted("x", "out", lambda: fail(ConfigError("why"))).exit_code == 2
    with pytest.raises(ZeroDivisionError):
        attempted("x", "out", lambda: fail(ZeroDivisionError()))


DAYS = [(f"day {n}", job(output={"uri": f"out/{n}"})) for n in range(4)]


@pytest.mark.parametrize(
    ("codes", "fail_fast", "ran"),
    [
        ([0, 4, 2, 0], False, 4),
        ([0, 4, 0, 0], True, 2),
        ([0, 3, 0, 0], True, 2),
        ([0, 130, 0, 0], False, 2),
        ([0, 0, 0, 0], True, 4),
    ],
)
def test_days_go_on_unless_interrupted_or_told_to_fail_fast(codes: list[int], fail_fast: bool, ran: int) -> None:
    asked: list[str] = []

    def run_one(day: str, config: RunConfig) -> list[Outcome]:
        asked.append(day)
        return [ended(codes[len(asked) - 1])]

    seen: list[Outcome] = []
    outcomes = run_days(DAYS, run_one, fail_fast=fail_fast, observe=seen.append)
    assert len(asked) == len(seen) == ran
    assert [o.exit_code for o in outcomes[:ran]] == codes[:ran]
    assert [(o.name, o.output, o.note) for o in outcomes[ran:]] == [
        (f"day {n}", f"out/{n}", "not run") for n in range(ran, 4)
    ]


def test_days_with_one_output_are_refused_unless_they_share_a_root() -> None:
    check_outputs(DAYS)
    with pytest.raises(ConfigError, match="The runs of a and of b would have one output, out"):
        check_outputs([("a", job()), ("b", job(output={"uri": "out/"}))])
    shared = job(input={"uri": "a", "incremental": True})
    check_outputs([("a", shared), ("b", shared)])
