"""What a sample of rows says of all rows: distributions, and intervals for means, shares and duplicates. Pure.

Rows are sampled in row groups, and rows of one group are alike more often than not, so that every interval here goes by how
much the groups differ and not by the number of rows alone. Intervals are for 95%.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.96


@dataclass(frozen=True, slots=True)
class Range:
    """A figure with what it may be at least and at most."""

    low: float
    expected: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Range":
        return cls(value, value, value)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, other: "Range | float") -> "Range":
        o = other if isinstance(other, Range) else Range.exactly(other)
        return Range(self.low * o.low, self.expected * o.expected, self.high * o.high)

    def over(self, other: "Range") -> "Range":
        """This divided by another: low over high, and high over low."""
        return Range(self.low / other.high, self.expected / other.expected, self.high / other.low)

    def rounded(self, digits: int = 0) -> "Range":
        return Range(*(round(v, digits) for v in (self.low, self.expected, self.high)))


@dataclass(frozen=True, slots=True)
class Spread:
    """How a count is distributed over rows, and its total over all of them with an interval."""

    mean: float
    p50: int
    p90: int
    p99: int
    max: int
    total: int
    total_low: int
    total_high: int


@dataclass(frozen=True, slots=True)
class Sampled:
    """How rows were sampled: of `total` rows, with the row group of each sampled one."""

    total: int
    groups: Sequence[int]

    @property
    def rows(self) -> int:
        return len(self.groups)

    @property
    def is_whole(self) -> bool:
        return self.rows >= self.total

    @property
    def unseen(self) -> float:
        """The share of rows that were not sampled; what correction a finite population brings."""
        return max(0.0, 1 - self.rows / self.total) if self.total else 0.0


def half_width(values: Sequence[float], sampled: Sampled) -> float:
    """Half the width of the interval around the mean of `values`, one a sampled row.

    The ratio estimator of a cluster sample (Cochran, Sampling Techniques, 3rd edition, section 9A.1), or the error of a
    simple random sample where that is larger; Student's t by its first expansion term, `z + (z**3 + z) / (4 df)`.
    """
    if len(values) < 2 or sampled.is_whole:
        return 0.0
    found, groups = np.asarray(values, np.float64), np.asarray(sampled.groups)
    n, mean = len(found), found.mean()
    error, df = found.var(ddof=1) / n, n - 1
    _, inverse = np.unique(groups, return_inverse=True)
    clusters = int(inverse.max()) + 1
    if clusters > 1:
        residuals = np.bincount(inverse, found - mean)
        between = clusters / (clusters - 1) * (residuals**2).sum() / n**2
        if between > error:
            error, df = between, clusters - 1
    return float((Z + (Z**3 + Z) / (4 * df)) * math.sqrt(error * sampled.unseen))


def spread(values: Sequence[int], sampled: Sampled, total_rows: Range) -> Spread | None:
    """The distribution of `values`, one a row of `sampled`, and their total over `total_rows` rows; None without values."""
    if not values:
        return None
    found = np.asarray(values)
    mean, half = float(found.mean()), half_width(values, sampled)
    p50, p90, p99 = (int(p) for p in np.percentile(found, [50, 90, 99], method="higher"))
    totals = Range(max(0.0, mean - half), mean, mean + half) * total_rows
    if sampled.is_whole:
        totals = Range.exactly(float(found.sum()))
    low, total, high = round(totals.low), round(totals.expected), round(totals.high)
    return Spread(round(mean, 2), p50, p90, p99, int(found.max()), total, low, high)


def share(hits: Sequence[bool], sampled: Sampled) -> Range:
    """The share of rows for which something holds, from 0 to 1.

    Wilson's interval, with as many rows as a simple random sample of equal error would have.
    """
    n = len(hits)
    if n == 0:
        return Range(0.0, 0.0, 1.0)
    p = sum(hits) / n
    if sampled.is_whole:
        return Range.exactly(p)
    simple = Z * math.sqrt(p * (1 - p) / n * sampled.unseen)
    widened = half_width([float(h) for h in hits], sampled)
    effective = n / max(1.0, (widened / simple) ** 2 if simple else 1.0) / max(sampled.unseen, 1e-9)
    shift = Z**2 / effective
    centre = (p + shift / 2) / (1 + shift)
    half = Z / (1 + shift) * math.sqrt(p * (1 - p) / effective + shift / (4 * effective))
    return Range(max(0.0, min(p, centre - half)), p, min(1.0, max(p, centre + half)))


def rows_of(fraction: Range, total: int) -> Range:
    """A share of rows as whole rows."""
    return (fraction * total).rounded()


def duplicates(keys: Iterable[str], total: int) -> Range:
    """Of `total` rows, those whose request another row has asked already, from the keys of the sampled ones.

    Expected are the rows less the distinct requests as Chao and Lin estimate them for sampling without replacement
    (Biometrics 68, 2012): `seen + f1**2 / (2 f2 n/(n-1) + f1 q/(1-q))`, where f1 and f2 requests were sampled once and twice
    and q is the sampled share. Low are those seen in the sample. High is the same estimate with f1 as small and f2 as large as
    chance may have hidden (Poisson, 95%): a small sample of many rows hardly bounds duplicates from above.
    """
    counts = Counter(keys)
    n, seen = counts.total(), len(counts)
    if n >= total or n < 2:
        return Range.exactly(n - seen)
    once, twice = (sum(1 for c in counts.values() if c == times) for times in (1, 2))
    q = n / total

    def repeated(singles: float, pairs: float) -> float:
        weight = 2 * pairs * n / (n - 1) + singles * q / (1 - q)
        distinct = min(total, seen + singles**2 / weight) if weight else seen
        return max(n - seen, total - distinct)

    fewest, most = max(0.0, once - Z * math.sqrt(once)), twice + Z * math.sqrt(twice + 1) + Z**2 / 2
    return Range(n - seen, repeated(once, twice), repeated(fewest, most)).rounded()
