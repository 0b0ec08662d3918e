"""What a person sees while a run goes on and when it has ended: a live line on a terminal, log lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipeline.config import OutputConfig
from pipeline.progress import Progress as Figures
from pipeline.report import Agreement

LOG_EVERY_S = 10.0


def sentence(figures: Figures) -> str:
    """One line of figures."""
    rows = figures.rows_ok + figures.rows_quarantined
    if not figures.engines:
        return f"starting engines ({figures.seconds:.0f} s)"
    speed = figures.rows_per_s
    tokens = figures.output_tokens / figures.window_s if figures.window_s else 0.0
    left = figures.rows_total - figures.rows_before - rows
    eta = f", {left / speed:.0f} s left" if speed and left else ""
    shards = figures.shards_before + figures.shards_done
    return (
        f"{shards}/{figures.shards_total} shards, {figures.rows_before + rows:,}/{figures.rows_total:,} rows, "
        f"{speed:,.0f} rows/s, {tokens:,.0f} output tokens/s, {figures.rows_quarantined} quarantined{eta}"
    )


def stdout_console() -> Console:
    """A console on stdout; where that is no terminal it does not fold lines at 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


class _Sentence(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("sentence", "")))


class Display:
    """Shows a run's progress on stderr between entering and leaving it as a context. `observe` takes the figures."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal and not quiet
        self._quiet, self._name = quiet, name
        self._next = 0.0
        self._is_answering = False
        self._seen: set[str] = set()
        self._bar = Progress(
            SpinnerColumn(), TextColumn(name), BarColumn(), _Sentence(), TimeElapsedColumn(), console=self._console
        )
        self._task = self._bar.add_task(name, total=None, sentence="planning")

    def __enter__(self) -> "Display":
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()

    def observe(self, figures: Figures) -> None:
        for event in figures.events:
            if event not in self._seen:
                self._seen.add(event)
                self._console.print(event, style="yellow", markup=False, highlight=False)
        done = figures.rows_before + figures.rows_ok + figures.rows_quarantined
        if self._live:
            self._bar.update(self._task, total=figures.rows_total, completed=done, sentence=sentence(figures))
        elif not self._quiet and (time.monotonic() > self._next or self._is_answering != bool(figures.engines)):
            self._next, self._is_answering = time.monotonic() + LOG_EVERY_S, bool(figures.engines)
            print(f"{time.strftime('%H:%M:%S')} {self._name}: {sentence(figures)}", file=sys.stderr, flush=True)


def print_summary(
    totals: dict[str, Any],
    *,
    output: OutputConfig,
    figures: Figures | None,
    agreements: list[Agreement],
    examples: list[dict[str, Any]],
    key: str | None,
) -> None:
    """The end of a run, for a person: what came out, what did not and why, how fast, and what to do next."""
    console = stdout_console()
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("run", totals["run_id"])
    rows = f"{totals['rows_in']:,} in = {totals['rows_ok']:,} answered + {totals['rows_quarantined']:,} quarantined"
    table.add_row("rows", rows)
    for agreement in agreements:
        words = f"{agreement.fraction:.2%} of {agreement.rows:,} answers agree with the gold column"
        table.add_row(f"agreement {agreement.group}", words)
    table.add_row("tokens", f"{totals['prompt_tokens']:,} prompt, {totals['output_tokens']:,} output")
    if figures is not None and figures.shards_done:
        starts = [e.get("start_s", 0.0) for e in figures.engines.values()]
        table.add_row(
            "speed",
            f"{figures.rows_per_s:,.0f} rows/s in the engines' window of {figures.window_s:.1f} s; "
            f"{len(starts)} engine{'s' if len(starts) != 1 else ''}, ready after {max(starts, default=0.0):.1f} s; "
            f"{figures.seconds:.1f} s in all",
        )
    else:
        table.add_row("speed", "nothing was left to do: every shard was committed before")
    table.add_row("output", output.uri)
    console.print()
    console.print(table, soft_wrap=True, highlight=False)
    if examples:
        console.print("\n[bold]quarantined[/bold]")
        why = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for row in examples:
            name = str(row[key]) if key and key in row else f"row {row['lineage']['row']}"
            why.add_row(Text(name), f"{row['stage']}/{row['error_type']}", Text(str(row["message"])), style="yellow")
        console.print(why, highlight=False)
        if totals["rows_quarantined"] > len(examples):
            console.print(f"  and {totals['rows_quarantined'] - len(examples):,} more", highlight=False)
    console.print("\n[bold]next[/bold]")
    for command, what in (
        (f"herd verify {output.arguments}", "prove that every row stands exactly once"),
        (f"herd show {output.arguments}", "look at answers"),
        (f"herd show {output.arguments} --quarantine", "look at what was quarantined, and why"),
    ):
        console.print(f"  {command}   [dim]{what}[/dim]", soft_wrap=True, highlight=False)
    console.print()
