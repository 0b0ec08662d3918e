"""What `herd run`, `resume` and `replay` print at the end: of one run, or of several."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from jobs.commands.printing import print_json
from jobs.display import print_summary, stdout_console
from pipeline.budget import allowed_rows


def report(finished: Any, as_json: bool) -> None:
    """One run that is finished. Exits with 3 where it quarantined more than it may."""
    from pipeline.report import agreement, quarantined_rows

    run, totals = finished.run, finished.totals
    config = run.config
    agreements = agreement(run.output, config.evaluate) if config.evaluate else []
    if as_json:
        figures = finished.figures.to_json() if finished.figures else None
        shares = {a.group: {"right": a.right, "rows": a.rows, "fraction": a.fraction} for a in agreements}
        print_json({**totals, "output": run.output.uri, "agreement": shares, "session": figures})
    else:
        examples = quarantined_rows(run.output, 8) if totals["rows_quarantined"] else []
        key = next((c for c in ("id", "key", "name") if c in run.columns.carry), None)
        print_summary(
            totals, output=config.output, figures=finished.figures, agreements=agreements, examples=examples, key=key
        )
    if not finished.is_within_limits:
        allowed = allowed_rows(config.limits, totals["rows_in"])
        fraction = f"limits.max_quarantined_fraction = {config.limits.max_quarantined_fraction:g}"
        click.echo(f"More rows were quarantined than {fraction} allows, or the {allowed:,.0f} of all limits.", err=True)
        sys.exit(3)


def line(outcome: Any) -> None:
    """Says on stderr what became of one of several runs, as soon as it is known."""
    click.echo(f"{'Error: ' if outcome.error else ''}{outcome.name}: {outcome.words}", err=True)


def report_several(outcomes: Sequence[Any], as_json: bool, *, none: str) -> None:
    """Several runs, or `none` where there were none. Exits with the worst of their exit codes."""
    from jobs.several import worst

    if as_json:
        print_json({"runs": [o.to_json() for o in outcomes], "exit_code": worst(outcomes)})
    elif not outcomes:
        click.echo(none)
    elif len(outcomes) > 1:
        _print_table(outcomes)
    elif outcomes[0].finished is not None:
        report(outcomes[0].finished, as_json)
    if code := worst(outcomes):
        sys.exit(code)


def _print_table(outcomes: Iterable[Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", "rows", "answered", "quarantined", "seconds", "output", "outcome"):
        table.add_column(
            name, overflow="fold", justify="right" if name in ("rows", "answered", "quarantined") else "left"
        )
    for o in outcomes:
        totals = o.finished.totals if o.finished else {}
        figures = o.finished.figures if o.finished else None
        counts = [f"{totals[k]:,}" if k in totals else "-" for k in ("rows_in", "rows_ok", "rows_quarantined")]
        seconds = f"{figures.seconds:,.1f}" if figures else "-"
        colour = {0: "green", 3: "yellow"}.get(o.exit_code, "red")
        table.add_row(o.name, *counts, seconds, Text(o.output), Text(o.words, style=colour))
    stdout_console().print(table, highlight=False, soft_wrap=True)
