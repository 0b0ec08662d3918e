"""What a person sees while a run goes on and when it has ended: a live line on a terminal, log lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
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


def short(number: float) -> str:
    """A number in few characters: 950, 18.4k, 123k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            scaled = number / size
            return f"{scaled:.0f}{unit}" if scaled >= 99.95 else f"{scaled:.1f}{unit}"
    return f"{number:.0f}"


def token_speed(view: Mapping[str, Any]) -> str | None:
    """Tokens a second in words, from `pipeline.overview.Overview` as plain data; None where nothing is known."""
    kinds = [("prompt", view["prompt_tokens_per_s"]), ("output", view["output_tokens_per_s"])]
    known = [f"{short(speed)} {kind}" for kind, speed in kinds if speed is not None]
    return f"{' + '.join(known)} tokens/s" if known else None


def shares(view: Mapping[str, Any]) -> list[str]:
    """What is known of the engines' busy time, KV cache and prefix hits, in words, from the same."""
    kinds = [("busy", view["busy"]), ("KV cache", view["kv_use"]), ("prefix hits", view["prefix_hit_rate"])]
    return [f"{kind} {share:.0%}" for kind, share in kinds if share is not None]


def stage_seconds(view: Mapping[str, Any]) -> str:
    """Seconds by stage in words, from the same."""
    seconds = view["stage_seconds"]
    words = {stage: f"{stage} {s:,.1f}" for stage, s in seconds.items() if stage != "images"}
    if seconds.get("images") and "render" in words:
        words["render"] += f" (images {seconds['images']:,.1f})"
    return ", ".join(words.values())


def sentence(figures: Figures) -> str:
    """One line of figures."""
    rows = figures.rows_ok + figures.rows_quarantined
    if not figures.engines:
        return f"starting engines ({figures.seconds:.0f} s)"
    speed = figures.rows_per_s
    view = asdict(figures.overview)
    known = "".join(f", {words}" for words in (token_speed(view), *shares(view)) if words)
    left = figures.rows_total - figures.rows_before - rows
    eta = f", {left / speed:.0f} s left" if speed and left else ""
    shards = figures.shards_before + figures.shards_done
    return (
        f"{shards}/{figures.shards_total} shards, {figures.rows_before + rows:,}/{figures.rows_total:,} rows, "
        f"{speed:,.0f} rows/s{known}, {figures.rows_quarantined:,} quarantined{eta}"
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
            SpinnerColumn(), TextColumn(name), BarColumn(20), _Sentence(), TimeElapsedColumn(), console=self._console
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


def live_facts(live: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """What a session said of itself (see `pipeline.live`), for a person: facts by name."""
    view = live["overview"]
    facts: dict[str, str | list[str]] = {"figures from": f"{live['age_s']:,.0f} s ago"}
    if view["rows_per_s"] is not None:
        facts["speed"] = ", ".join([f"{view['rows_per_s']:,.1f} rows/s", *filter(None, [token_speed(view)])])
    lines = []
    for name, e in live["by_engine"].items():
        requests = [f"{e[kind]:,} {kind}" for kind in ("running", "waiting") if e[kind] is not None]
        lines.append(f"{name}: " + ", ".join([f"{e['rows_per_s'] or 0:,.1f} rows/s", *shares(e), *requests]))
    if lines:
        facts["engines"] = lines
    facts["stage seconds"] = stage_seconds(view)
    if view["rows_reused"]:
        facts["reused"] = f"{view['rows_reused']:,} rows were answered with another row's answer"
    if live["bottleneck"]:
        facts["bottleneck"] = live["bottleneck"]
    return facts


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
        view = asdict(figures.overview)
        if figures.window_s:
            table.add_row("engines", ", ".join([*filter(None, [token_speed(view)]), *shares({**view, "kv_use": None})]))
        table.add_row("time", f"seconds of {stage_seconds(view)}; side by side, over all threads")
        if view["rows_reused"]:
            table.add_row("reused", f"{view['rows_reused']:,} rows were answered with another row's answer")
        if figures.bottleneck:
            table.add_row("bottleneck", figures.bottleneck)
    else:
        table.add_row("speed", "nothing was left to do: every shard was committed before")
    if totals.get("compared"):
        table.add_row("estimate", totals["compared"])
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
