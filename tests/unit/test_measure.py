"""The arithmetic of the benchmarks."""

from pathlib import Path

import pytest

from tests.bench.__main__ import below_floor
from tests.bench.measure import Bench, Claim, Figures, Measured, Side, SideError, measured
from tests.bench.plots import exponent
from tests.bench.report import table
from tests.bench.sides.herd import steady_rate

SPEED = Claim("x/speed", "work", "them", "rows/s", ("us", "speed"), ("them", "speed"), 1.0)
TIME = Claim("x/time", "work", "them", "s", ("us", "s"), ("them", "s"), 2.0, inverse=True)
LENGTH = Claim("x/length", "work", "ideal", "s", ("us", "s"), ("them", "s"), 1.15, at_most=True)
ROUND = {"us": {"speed": 3.0, "s": 2.0}, "them": {"speed": 2.0, "s": 8.0}}


def rounds(*found: dict[str, Figures]) -> Measured:
    return Measured(Bench("x", "about", {}, [SPEED]), list(found))


@pytest.mark.parametrize(("claim", "ratio"), [(SPEED, 1.5), (TIME, 4.0), (LENGTH, 0.25)])
def test_claim_ratio_is_ours_over_theirs_or_the_other_way(claim: Claim, ratio: float) -> None:
    assert claim.ratio(ROUND) == ratio
    assert claim.ratio({"us": ROUND["us"]}) is None


def test_claim_target_is_a_floor_or_a_ceiling() -> None:
    assert SPEED.holds(1.0, 1.0) and not SPEED.holds(0.9, 1.0)
    assert LENGTH.holds(1.0, 1.0) and not LENGTH.holds(1.1, 1.0)


def test_ratio_of_rounds_is_the_median_of_their_ratios() -> None:
    found = rounds(*({"us": {"speed": s}, "them": {"speed": 1.0}} for s in (5.0, 1.0, 2.0)))
    assert found.ratio(SPEED) == 2.0
    assert found.median("us", "speed") == 2.0


def test_measured_sides_run_in_turn_and_one_that_cannot_run_is_left_out(tmp_path: Path) -> None:
    ran: list[str] = []

    def side(name: str) -> Side:
        def act(folder: Path) -> Figures:
            ran.append(name)
            if name == "them":
                raise SideError("it is not installed")
            return {"speed": 1.0}

        return act

    bench = Bench("x", "about", {name: side(name) for name in ("us", "them")}, [SPEED])
    found = measured(bench, 2, tmp_path, lambda sentence: None)
    assert ran == ["us", "them", "us"]
    assert found.missing == {"them": "it is not installed"}
    assert found.ratio(SPEED) is None
    assert table([found])[-1].endswith("| - | not run |")


def test_floor_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rounds(ROUND)
    monkeypatch.setattr("tests.bench.__main__.FLOORS", {"x/speed": 1.6})
    assert below_floor([found]) == ["x/speed is 1.50; its floor is 1.60"]
    assert below_floor([rounds()]) == ["x/speed could not be measured; its floor is 1.60"]
    monkeypatch.setattr("tests.bench.__main__.FLOORS", {"x/speed": 1.5})
    assert below_floor([found]) == []


def test_steady_rate_leaves_the_first_and_the_last_tenth_out() -> None:
    times = [0.0, *(100.0 + n for n in range(18)), 500.0]
    assert steady_rate([{"rows_in": 10, "at": at, "engine": "a"} for at in times]) == pytest.approx(10.0)
    assert steady_rate([{"rows_in": 10, "at": 1.0, "engine": "a"}]) == 0.0


def test_steady_rate_begins_when_the_last_engine_is_at_work() -> None:
    late = [{"rows_in": 10, "at": 100.0 * n, "engine": "a"} for n in range(6)]
    both = [{"rows_in": 10, "at": 500.0 + n, "engine": "b"} for n in range(14)]
    assert steady_rate([*late, *both]) == pytest.approx(10.0)


def test_exponent_is_the_power_of_growth() -> None:
    assert exponent([(1, 3), (10, 300), (100, 30_000)]) == pytest.approx(2.0)
