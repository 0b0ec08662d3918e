"""Plots of what was measured, as SVG: ratios over their targets, and growth on logarithmic axes with the exponent of a fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.measure import Measured

Points = Sequence[tuple[float, float]]


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "herd"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return figure, axes


def _saved(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path


def plot_ratios(found: Sequence[Measured], path: Path) -> Path:
    """A bar a claim: its ratio over its target, turned round where small is good, so that 1 and more is met."""
    bars = []
    for measured in found:
        for claim in measured.bench.claims:
            ratio = measured.ratio(claim)
            if claim.target is None or not ratio:
                continue
            ratios = [ratio, *measured.ratios(claim)]
            bars.append((claim.key, [claim.target / r if claim.at_most else r / claim.target for r in ratios if r]))
    figure, axes = _figure(8, 1 + 0.35 * len(bars))
    axis = axes[0, 0]
    axis.barh([name for name, _ in bars], [values[0] for _, values in bars], color="#9db8d3")
    for row, (_, values) in enumerate(bars):
        axis.plot(values[1:], [row] * len(values[1:]), "o", color="#1f3b57", markersize=4)
    axis.axvline(1, color="#b03a2e")
    axis.invert_yaxis()
    axis.set_xlabel("ratio over its target")
    return _saved(figure, path)


def exponent(points: Points) -> float:
    """The power of a fit through points: 1 is linear."""
    x, y = np.log([p[0] for p in points]), np.log([p[1] for p in points])
    return float(np.polyfit(x, y, 1)[0])


def plot_growth(title: str, curves: Mapping[str, Mapping[str, Points]], path: Path) -> Path:
    """A panel a unit, with its curves over what grows; `curves` holds points by unit and name."""
    figure, axes = _figure(5 * len(curves), 4, len(curves))
    for axis, (unit, named) in zip(axes[0], curves.items(), strict=True):
        for name, points in named.items():
            label = f"{name} (power {exponent(points):.2f})"
            axis.loglog([p[0] for p in points], [p[1] for p in points], "o-", label=label)
        axis.set_xlabel(title)
        axis.set_ylabel(unit)
        axis.legend()
        axis.grid(True, which="both", alpha=0.3)
    return _saved(figure, path)
