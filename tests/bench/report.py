"""Writes down what was measured: the table of claims, every round, and plots, as a dated file of `tests/bench/reports/`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.machine import machine, software
from tests.bench.measure import Claim, Measured
from tests.bench.plots import plot_ratios

REPORTS = Path(__file__).parent / "reports"


def stem(name: str) -> Path:
    """The path of today's report without its ending."""
    return REPORTS / f"{datetime.now(UTC):%Y-%m-%d}-{name}"


def figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def verdict(claim: Claim, ratio: float | None) -> str:
    if claim.target is None:
        return "-"
    if ratio is None:
        return "not run"
    return "met" if claim.holds(ratio, claim.target) else "missed"


def target(claim: Claim) -> str:
    if claim.target is None:
        return "-"
    return f"{'at most ' if claim.at_most else ''}{claim.target:.2f}"


def table(found: Sequence[Measured]) -> list[str]:
    lines = ["| work | against | target | ours | theirs | ratio | |", "|---|---|---|---|---|---|---|"]
    for measured in found:
        for claim in measured.bench.claims:
            ratio = measured.ratio(claim)
            ours, theirs = (figure(measured.median(*side)) for side in (claim.ours, claim.theirs))
            shown = "-" if ratio is None else f"{ratio:.2f}"
            lines.append(
                f"| {claim.key}: {claim.work} | {claim.against} | {target(claim)} | {ours} {claim.unit} "
                f"| {theirs} {claim.unit} | {shown} | {verdict(claim, ratio)} |"
            )
    return lines


def rounds(measured: Measured) -> list[str]:
    """Every figure of every round, and each claim's ratio in it."""
    names = [f"{side}: {key}" for side, keys in _figures(measured).items() for key in keys]
    columns = ["round", *names, *(claim.key for claim in measured.bench.claims)]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for turn, figures in enumerate(measured.rounds, 1):
        cells = [figure(figures.get(side, {}).get(key)) for side, keys in _figures(measured).items() for key in keys]
        ratios = [claim.ratio(figures) for claim in measured.bench.claims]
        lines.append(f"| {' | '.join([str(turn), *cells, *map(figure, ratios)])} |")
    return lines


def _figures(measured: Measured) -> dict[str, list[str]]:
    """The names of the figures of each side, over all rounds."""
    out: dict[str, dict[str, None]] = {}
    for figures in measured.rounds:
        for side, values in figures.items():
            out.setdefault(side, {}).update(dict.fromkeys(values))
    return {side: list(keys) for side, keys in out.items()}


def write(found: Sequence[Measured], command: str, path: Path) -> None:
    """The report of these benchmarks, at a stem that its plots share."""
    lines = [
        f"# Performance, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"`{command}` on {machine()}.",
        f"{software()}.",
        "",
        "The sides of a benchmark ran in turn, round after round. Figures are medians of the rounds, a ratio is the median",
        "of the rounds' ratios; for times (theirs over ours) and rates alike, more is better but where a target says `at most`.",
        "",
        *table(found),
        "",
    ]
    if any(m.ratio(c) is not None and c.target is not None for m in found for c in m.bench.claims):
        plot = plot_ratios(found, path.with_name(f"{path.name}-ratios.svg"))
        lines += [f"![Each claim's ratio over its target; dots are rounds]({plot.name})", ""]
    for measured in found:
        lines += [f"## {measured.bench.name}", "", measured.bench.about, ""]
        lines += [f"Not run: {side}, because: {why}\n" for side, why in measured.missing.items()]
        lines += [*rounds(measured), ""] if measured.bench.sides else []
        lines += [*measured.appendix, ""] if measured.appendix else []
    path.parent.mkdir(exist_ok=True)
    path.with_name(f"{path.name}.md").write_text("\n".join(lines).rstrip() + "\n")
