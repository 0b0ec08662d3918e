import pytest

from pipeline.budget import BudgetError, allowed_rows, overspent
from pipeline.config import LimitsConfig
from pipeline.errors import HerdError


def limits(fraction: float = 0.01, rows: int | None = None, sample: int = 1000) -> LimitsConfig:
    return LimitsConfig(max_quarantined_fraction=fraction, max_quarantined_rows=rows, min_sample_rows=sample)


@pytest.mark.parametrize(
    ("fraction", "rows", "total", "allowed"),
    [
        (0.01, None, 10_000, 100),
        (0.01, 7, 10_000, 7),
        (0.01, 500, 10_000, 100),
        (0.01, 0, 10_000, 0),
        (0.0, None, 10_000, 0),
        (1.0, None, 10_000, 10_000),
        (0.01, None, 0, 0.01),
        (0.5, None, 1, 0.5),
    ],
)
def test_allowed_rows_are_the_fewer_of_the_two_limits(
    fraction: float, rows: int | None, total: int, allowed: float
) -> None:
    assert allowed_rows(limits(fraction, rows), total) == pytest.approx(allowed)


def spent(config: LimitsConfig, *, total: int, done: int, bad: int) -> str | None:
    return overspent(config, rows_total=total, rows_done=done, rows_quarantined=bad)


def test_nothing_is_overspent_before_the_sample_is_whole() -> None:
    assert spent(limits(), total=10_000, done=999, bad=999) is None
    assert spent(limits(), total=10_000, done=1000, bad=1000) is not None


@pytest.mark.parametrize(("fraction", "rows", "most"), [(0.01, None, 100), (0.01, 7, 7), (0.01, 0, 0), (0.0, None, 0)])
def test_more_than_the_whole_run_may_have_is_overspent(fraction: float, rows: int | None, most: int) -> None:
    config = limits(fraction, rows)
    assert spent(config, total=10_000, done=1000, bad=most) is None
    said = spent(config, total=10_000, done=1000, bad=most + 1)
    assert said == (f"{most + 1} of the first 1,000 rows are quarantined, and the whole run of 10,000 may have {most}")


def test_more_than_half_of_what_was_asked_is_overspent() -> None:
    config = limits(0.1)
    assert spent(config, total=100_000, done=2000, bad=1000) is None
    assert spent(config, total=100_000, done=2000, bad=1001) == (
        "1,001 of the first 2,000 rows are quarantined: that is the job's fault rather than the rows'"
    )


def test_more_than_half_is_fine_where_the_job_allows_more() -> None:
    config = limits(0.8)
    assert spent(config, total=100_000, done=1000, bad=800) is None
    assert spent(config, total=100_000, done=1000, bad=801) is not None


def test_job_that_allows_everything_is_never_overspent() -> None:
    assert spent(limits(1.0), total=1000, done=1000, bad=1000) is None


def test_run_smaller_than_the_sample_ends_by_itself() -> None:
    assert spent(limits(0.0), total=500, done=500, bad=500) is None


def test_sample_of_one_row_judges_at_once() -> None:
    assert spent(limits(0.0, sample=1), total=10, done=1, bad=1) is not None
    assert spent(limits(0.0, sample=1), total=10, done=1, bad=0) is None


def test_budget_error_has_an_exit_code_of_its_own() -> None:
    assert issubclass(BudgetError, HerdError)
    assert BudgetError("x").exit_code == 3
