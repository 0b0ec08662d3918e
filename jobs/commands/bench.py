"""`herd bench`."""

from collections.abc import Callable
from typing import Any

import click
import yaml
from rich.table import Table
from rich.text import Text

from jobs.commands.options import cluster_options, ds_option, json_option, one_day, set_option
from jobs.commands.printing import print_json
from jobs.display import stdout_console
from jobs.jobfile import load_job


def _points(context: click.Context, parameter: click.Parameter, value: str | None) -> list[Any] | None:
    """A comma-separated list of YAML scalars; `-` for none."""
    if value is None:
        return None
    if value == "-":
        return []
    out: list[Any] = [yaml.safe_load(part) for part in value.split(",")]
    kind = {"enable_expert_parallel": bool, "kv_cache_dtype": str}.get(str(parameter.name), int)
    if any(type(v) is not kind or (type(v) is int and v < 1) for v in out):
        raise click.BadParameter("give values with commas between, such as 64,128; or - to leave it out")
    return out


def _bench_options(f: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option(
                "--rows", type=click.IntRange(min=1), default=512, show_default=True, help="Rows of the sample."
            ),
            click.option("--max-num-seqs", metavar="N,...", callback=_points, help="Points; `-` leaves the axis out."),
            click.option("--max-num-batched-tokens", metavar="N,...", callback=_points, help="The same."),
            click.option("--tensor-parallel-size", metavar="N,...", callback=_points, help="The same; GPUs only."),
            click.option("--enable-expert-parallel", metavar="false,true", callback=_points, help="The same."),
            click.option("--kv-cache-dtype", metavar="TYPE,...", callback=_points, help="The same; changes answers."),
        )
    ):
        f = option(f)
    return f


@click.command()
@click.argument("job")
@_bench_options
@ds_option
@set_option
@cluster_options
@json_option
def bench(
    job: str,
    rows: int,
    ds: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    address: str | None,
    verbose: bool,
    **points: list[Any] | None,
) -> None:
    """Find the engine settings with which a sample of JOB's rows goes fastest.

    One setting after another: first the job as it stands, then max_num_seqs at each point, then the next axis with the
    best so far. A setting that fails is a row of the table. Outputs are removed; the job's own output is not touched.

    \b
    herd bench job.yaml
    herd bench job.yaml --rows 2048 --max-num-seqs 64,128,256 --max-num-batched-tokens -

    Exits with 0 if a setting ran, 2 for a bad command or configuration, 4 if none could run, 130 if interrupted.
    """
    from jobs import bench as sweeping

    def say(trial: sweeping.Trial) -> None:
        if not as_json:
            click.echo(f"{_shown(trial.setting)}: {trial.failure or f'{trial.rows_per_s:,.1f} rows/s'}", err=True)

    given = {key: values for key, values in points.items() if values is not None}
    config = load_job(job, overrides, day=one_day(ds))
    trials = sweeping.bench(config, rows, given, address=address, verbose=verbose, observe=say)
    fastest = sweeping.best(trials)
    assert fastest is not None
    if as_json:
        print_json({"trials": [t.to_json() for t in trials], "best": fastest.setting})
        return
    has_gpus = any(t.gpus for t in trials)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("setting", "rows/s", *(["rows/s a GPU"] if has_gpus else []), "output tokens/s", "start s", "busy"):
        table.add_column(name)
    table.add_column("failure", overflow="fold")
    for t in trials:
        cells = [
            f"{t.rows_per_s:,.1f}",
            *([f"{t.score:,.1f}"] if has_gpus else []),
            f"{t.output_tokens_per_s:,.0f}",
            f"{t.start_s:.1f}",
            f"{t.busy_fraction:.0%}",
        ]
        values = ["-"] * len(cells) if t.failure else cells
        table.add_row(Text(_shown(t.setting)), *values, Text(t.failure or ""), style="bold" if t is fastest else None)
    stdout_console().print(table, highlight=False)
    click.echo(f"\n{sweeping.snippet(fastest)}" if fastest.setting else "\nThe job's own settings are the fastest.")


def _shown(setting: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in setting.items()) or "as the job has it"
