import random
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.spread import Range, Sampled, duplicates, half_width, share, spread

WHOLE = Sampled(4, [0, 0, 1, 1])


def test_spread_of_a_whole_sample_is_exact() -> None:
    found = spread([1, 2, 3, 10], WHOLE, Range.exactly(4))
    assert found is not None
    assert (found.mean, found.p50, found.max, found.total, found.total_low, found.total_high) == (
        4.0,
        3,
        10,
        16,
        16,
        16,
    )


def test_spread_of_no_rows_is_none() -> None:
    assert spread([], Sampled(10, []), Range.exactly(10)) is None


def test_spread_extrapolates_the_mean_to_all_rows() -> None:
    found = spread([10] * 50, Sampled(1000, [n % 5 for n in range(50)]), Range.exactly(1000))
    assert found is not None and (found.total, found.total_low, found.total_high) == (10_000, 10_000, 10_000)


def test_half_width_of_alike_groups_is_that_of_a_simple_sample() -> None:
    values = [0.0, 1.0] * 50
    assert half_width(values, Sampled(10**9, [n // 10 for n in range(100)])) == pytest.approx(0.0984 + 0.001, abs=0.003)


def test_half_width_of_groups_that_differ_goes_by_groups() -> None:
    values = [float(n // 25) for n in range(100)]  # each of four groups has one value
    by_rows = half_width(values, Sampled(10**9, list(range(100))))
    assert half_width(values, Sampled(10**9, [n // 25 for n in range(100)])) > 3 * by_rows


def covers(interval: Callable[[list[int], Sampled], Range], rate: float, tries: int = 400) -> float:
    """How often the interval of a sample of 200 rows from 20 groups of 5,000 in all holds the true share."""
    rng, hits = random.Random(5), 0
    for _ in range(tries):
        population = [rng.random() < rate for _ in range(5000)]
        places = rng.sample(range(5000), 200)
        found = interval([population[p] for p in places], Sampled(5000, [n // 10 for n in range(200)]))
        hits += found.low <= sum(population) / 5000 <= found.high
    return hits / tries


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_share_holds_the_truth_about_as_often_as_it_says(rate: float) -> None:
    assert covers(share, rate) >= 0.93


def test_share_of_none_among_few_is_bounded_from_above() -> None:
    found = share([False] * 512, Sampled(10**7, [n // 32 for n in range(512)]))
    assert (found.low, found.expected) == (0.0, 0.0)
    assert 0.005 < found.high < 0.01  # about 3.8 / 512


def test_share_of_a_whole_sample_is_exact() -> None:
    assert share([True, False, False, False], WHOLE) == Range.exactly(0.25)


def test_duplicates_of_a_whole_sample_are_counted() -> None:
    assert duplicates(["a", "a", "b", "a"], 4) == Range.exactly(2)


def test_duplicates_where_none_is_seen_are_expected_to_be_none() -> None:
    found = duplicates([str(n) for n in range(500)], 10_000)
    assert (found.low, found.expected) == (0, 0) and found.high > 0


@pytest.mark.parametrize("times", [2, 5])
def test_duplicates_of_rows_that_all_stand_so_many_times_are_estimated(times: int) -> None:
    rng = np.random.default_rng(1)
    rows = np.repeat(np.arange(4000 // times), times)
    sample = rng.choice(rows, 1000, replace=False)
    found = duplicates(map(str, sample), 4000)
    truth = 4000 - 4000 // times
    assert found.low <= truth <= found.high
    assert found.expected == pytest.approx(truth, rel=0.1)


def test_range_over_a_range_takes_opposite_ends() -> None:
    assert Range(1, 2, 4).over(Range(1, 2, 4)) == Range(0.25, 1, 4)
