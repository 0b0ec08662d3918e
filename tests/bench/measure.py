"""What a benchmark is: sides that are run in turn, round after round, and claims about the ratio of two of their figures.

A side that could not run says why, and the claims that need it have no ratio.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Figures = dict[str, float]
Side = Callable[[Path], Figures]
"""Runs one side once; the folder is new and its own."""


class SideError(Exception):
    """A side could not run, and why."""


@dataclass(frozen=True)
class Claim:
    """One line of the report. The ratio is ours over theirs, or theirs over ours for what should be short."""

    key: str
    work: str
    against: str
    unit: str
    ours: tuple[str, str]
    """A side and one of its figures."""
    theirs: tuple[str, str]
    target: float | None = None
    inverse: bool = False
    at_most: bool = False
    """The target is a ceiling."""

    def ratio(self, figures: Mapping[str, Figures]) -> float | None:
        """The ratio in one round; None where a side is missing."""
        try:
            ours, theirs = figures[self.ours[0]][self.ours[1]], figures[self.theirs[0]][self.theirs[1]]
        except KeyError:
            return None
        above, below = (theirs, ours) if self.inverse else (ours, theirs)
        return above / below if below else None

    def holds(self, ratio: float, bound: float) -> bool:
        """Whether a ratio is on the good side of a bound."""
        return ratio <= bound if self.at_most else ratio >= bound


@dataclass(frozen=True)
class Bench:
    """A workload, ready to be run."""

    name: str
    about: str
    sides: Mapping[str, Side]
    claims: list[Claim]
    appendix: Callable[[Path, Path], list[str]] | None = None
    """More measurements, made once: given a scratch folder and the stem of its plots, returns lines of Markdown."""


@dataclass
class Measured:
    """A benchmark's rounds."""

    bench: Bench
    rounds: list[dict[str, Figures]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """By side, why it could not run."""
    appendix: list[str] = field(default_factory=list)

    def median(self, side: str, figure: str) -> float | None:
        values = [r[side][figure] for r in self.rounds if side in r and figure in r[side]]
        return statistics.median(values) if values else None

    def ratios(self, claim: Claim) -> list[float]:
        return [ratio for r in self.rounds if (ratio := claim.ratio(r)) is not None]

    def ratio(self, claim: Claim) -> float | None:
        """The median of the rounds' ratios."""
        ratios = self.ratios(claim)
        return statistics.median(ratios) if ratios else None


def measured(bench: Bench, rounds: int, folder: Path, say: Callable[[str], None]) -> Measured:
    """Runs each side once a round, in turn, so that whatever else the machine does falls on all of them alike."""
    out = Measured(bench)
    for turn in range(rounds):
        figures: dict[str, Figures] = {}
        for name, side in bench.sides.items():
            if name in out.missing:
                continue
            here = folder / f"{turn}-{name}"
            here.mkdir(parents=True)
            try:
                figures[name] = side(here)
            except SideError as e:
                out.missing[name] = str(e)
                say(f"{bench.name}, round {turn + 1}: {name} could not run: {e}")
                continue
            shown = ", ".join(f"{key} {value:,.4g}" for key, value in figures[name].items())
            say(f"{bench.name}, round {turn + 1}: {name}: {shown}")
        out.rounds.append(figures)
    return out
