"""The `herd` command: parses, calls one function, prints."""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click
import yaml
from rich.table import Table
from rich.text import Text

from cluster.models import PROFILES, resolve_model, with_profile
from jobs import __doc__ as _package_doc
from jobs import inspect
from jobs.display import live_facts, print_summary, stdout_console
from jobs.jobfile import adhoc_job, amended, load_job
from pipeline import __version__
from pipeline.budget import allowed_rows
from pipeline.config import RunConfig, StorageConfig
from pipeline.errors import HerdError

assert _package_doc

EXAMPLES = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}


@click.group(context_settings=EXAMPLES)
@click.version_option(__version__, prog_name="herd")
def cli() -> None:
    """Batch inference for the Llama 4 herd, and any model that vLLM runs, on Ray.

    \b
    A job in a file:          herd run job.yaml
    The same, changed:        herd run job.yaml --set sampling.max_tokens=64
    No file at all:           herd run --model ./model --input 'data/*.parquet' \\
                                       --prompt 'Summarise: {{ text }}' --output ./out
    Is all of it there?       herd verify ./out
    What came out?            herd show ./out
    It was stopped:           herd resume ./out

    \b
    Exit codes: 0 done and complete, 2 bad command or configuration, 3 done but more rows
    quarantined than allowed, 4 failed and resumable, 130 interrupted and resumable.
    """


def _set_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")(f)


def _json_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(f)


def _cluster_options(f: Callable[..., Any]) -> Callable[..., Any]:
    f = click.option("--verbose", is_flag=True, help="Show the log lines of Ray and vLLM.")(f)
    return click.option("--address", help="Ray cluster to run on, such as `auto`. Default: RAY_ADDRESS, else here.")(f)


def _store_options(f: Callable[..., Any]) -> Callable[..., Any]:
    f = click.option("--anonymous", is_flag=True, help="Reach OUT without credentials.")(f)
    return click.option("--endpoint-url", help="Endpoint of the S3-compatible store that OUT is on.")(f)


def _job_options(f: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.argument("job", required=False),
            click.option("--model", help="Profile (see `herd models`), hub id, or path."),
            click.option("--input", "input_uri", multiple=True, help="Parquet file, glob or folder; may be repeated."),
            click.option("--prompt", help="Jinja2 template over the row's columns: 'Summarise: {{ text }}'."),
            click.option("--system", help="Jinja2 template of the system prompt."),
            click.option("--image-column", multiple=True, help="Column with images; may be repeated."),
            click.option("--output", help="Folder for the results: a path or s3://."),
            click.option("--max-tokens", type=int, help="Output tokens a row at most."),
            click.option("--choice", multiple=True, help="Allowed answer; repeat for each."),
            _set_option,
        )
    ):
        f = option(f)
    return f


def _job(options: dict[str, Any]) -> RunConfig:
    given = {
        "model": options.pop("model"),
        "input.uri": options.pop("input_uri"),
        "prompt.user": options.pop("prompt"),
        "prompt.system": options.pop("system"),
        "input.images": options.pop("image_column"),
        "output.uri": options.pop("output"),
        "sampling.max_tokens": options.pop("max_tokens"),
        "answer.choice": options.pop("choice"),
    }
    job, overrides = options.pop("job"), options.pop("overrides")
    if job is None:
        return adhoc_job(given, overrides)
    own = [
        f"{k}={json.dumps(list(v) if isinstance(v, tuple) else v, ensure_ascii=False)}"
        for k, v in given.items()
        if v not in (None, ())
    ]
    return load_job(job, [*own, *overrides])


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def _storage(endpoint_url: str | None, anonymous: bool) -> StorageConfig:
    return StorageConfig(endpoint_url=endpoint_url, anonymous=anonymous)


def _report(finished: Any, as_json: bool) -> None:
    from pipeline.report import agreement, quarantined_rows

    run, totals = finished.run, finished.totals
    config = run.config
    agreements = agreement(run.output, config.evaluate) if config.evaluate else []
    if as_json:
        figures = finished.figures.to_json() if finished.figures else None
        shares = {a.group: {"right": a.right, "rows": a.rows, "fraction": a.fraction} for a in agreements}
        _print_json({**totals, "output": run.output.uri, "agreement": shares, "session": figures})
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


@cli.command()
@_job_options
@_cluster_options
@_json_option
def run(as_json: bool, address: str | None, verbose: bool, **options: Any) -> None:
    """Run a job, from a YAML file or from options alone. Run it again to resume it.

    \b
    herd run job.yaml
    herd run job.yaml --set pool.max=8 --set limits.max_quarantined_fraction=0.05
    herd run --model scout-int4 --input s3://bucket/photos/ --image-column photo \\
             --prompt 'Is there a cow in this photo?' --choice yes --choice no \\
             --set pool.accelerator=H100 --output s3://bucket/cows

    \b
    A job file:
      name: digits
      input: {uri: 'data/*.parquet', images: [image], carry: [id, label]}
      prompt: {user: "Which digit is this?"}
      model: ./model
      sampling: {temperature: 0, max_tokens: 4}
      answer: {choice: ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]}
      output: {uri: ./out/digits}
    """
    from jobs.launch import run_job

    _report(run_job(_job(options), address=address, quiet=as_json, verbose=verbose), as_json)


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


@cli.command()
@click.argument("job")
@_bench_options
@_set_option
@_cluster_options
@_json_option
def bench(
    job: str,
    rows: int,
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
    config = load_job(job, overrides)
    trials = sweeping.bench(config, rows, given, address=address, verbose=verbose, observe=say)
    fastest = sweeping.best(trials)
    assert fastest is not None
    if as_json:
        _print_json({"trials": [t.to_json() for t in trials], "best": fastest.setting})
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


@cli.command()
@_job_options
@_json_option
def plan(as_json: bool, **options: Any) -> None:
    """Say what a job would do: files, rows, shards, columns. Reads footers only and starts nothing.

    \b
    herd plan job.yaml
    """
    facts = inspect.plan_facts(with_profile(_job(options)))
    if as_json:
        _print_json(facts)
        return
    _print_facts(facts)


@cli.command()
@click.argument("out")
@_set_option
@_store_options
@_cluster_options
@_json_option
def resume(
    out: str,
    overrides: tuple[str, ...],
    endpoint_url: str | None,
    anonymous: bool,
    as_json: bool,
    address: str | None,
    verbose: bool,
) -> None:
    """Continue the run in folder OUT with what is not committed yet.

    Settings that change no answer may be set anew: pool, limits, rendering threads, batch sizes.

    \b
    herd resume ./out/digits
    herd resume ./out/digits --set pool.max=8 --set limits.max_quarantined_fraction=0.1
    """
    from jobs.launch import resume_run

    _report(
        resume_run(
            out,
            _storage(endpoint_url, anonymous),
            amend=lambda config: amended(config, overrides),
            address=address,
            quiet=as_json,
            verbose=verbose,
        ),
        as_json,
    )


@cli.command()
@click.argument("out")
@click.option("--stage", help="Only rows that failed at this stage: image, render, engine, answer.")
@click.option("--type", "error_type", help="Only rows with this error type.")
@_set_option
@_store_options
@_cluster_options
@_json_option
def replay(
    out: str,
    stage: str | None,
    error_type: str | None,
    overrides: tuple[str, ...],
    endpoint_url: str | None,
    anonymous: bool,
    as_json: bool,
    address: str | None,
    verbose: bool,
) -> None:
    """Ask the quarantined rows of a finished run again, and merge what comes back.

    They may be asked otherwise than at first; commit records keep what became of earlier attempts.

    \b
    herd replay ./out/digits
    herd replay ./out/digits --stage image --type image_timeout
    herd replay ./out/digits --type answer_cut --set sampling.max_tokens=256
    """
    from jobs.launch import replay_run

    def keep(row: dict[str, Any]) -> bool:
        return (stage is None or row["stage"] == stage) and (error_type is None or row["error_type"] == error_type)

    _report(
        replay_run(
            out,
            _storage(endpoint_url, anonymous),
            keep,
            amend=lambda config: amended(config, overrides),
            address=address,
            quiet=as_json,
            verbose=verbose,
        ),
        as_json,
    )


@cli.command()
@click.argument("out")
@_store_options
@_json_option
def status(out: str, endpoint_url: str | None, anonymous: bool, as_json: bool) -> None:
    """Say how far the run in folder OUT is, from its commit records, and how its latest session fares: speed, engines,
    where time goes and what bounds it.

    \b
    herd status s3://bucket/labels/digits
    """
    facts = inspect.status_facts(out, _storage(endpoint_url, anonymous))
    if as_json:
        _print_json(facts)
        return
    live = facts.pop("live")
    _print_facts({**facts, **(live_facts(live) if live else {})})


@cli.command()
@click.argument("out")
@_store_options
@_json_option
def verify(out: str, endpoint_url: str | None, anonymous: bool, as_json: bool) -> None:
    """Prove from the files alone that every planned row stands exactly once in data or quarantine.

    Exits with 0 if the run is complete, else with 4.

    \b
    herd verify s3://bucket/labels/digits
    """
    verdict = inspect.verdict(out, _storage(endpoint_url, anonymous))
    if as_json:
        _print_json(verdict.to_json())
    else:
        _print_facts(verdict.to_json())
        click.echo("complete" if verdict.is_complete else "NOT complete")
    sys.exit(0 if verdict.is_complete else 4)


@cli.command()
@click.argument("out")
@click.option("-n", "--rows", type=click.IntRange(min=1), default=10, show_default=True, help="Rows to show.")
@click.option("--quarantine", is_flag=True, help="Show quarantined rows and why.")
@click.option("--stage", help="With --quarantine: only this stage.")
@_store_options
@_json_option
def show(
    out: str, rows: int, quarantine: bool, stage: str | None, endpoint_url: str | None, anonymous: bool, as_json: bool
) -> None:
    """Show answers, or quarantined rows, of the run in folder OUT.

    \b
    herd show ./out/digits -n 3
    herd show ./out/digits --quarantine
    """
    found = inspect.rows(out, _storage(endpoint_url, anonymous), rows, quarantine=quarantine, stage=stage)
    if as_json:
        _print_json(found)
        return
    if not found:
        click.echo("no quarantined rows" if quarantine else "no answered rows yet")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = [n for n in found[0] if n != "lineage"]
    for name in [*names, "from"]:
        table.add_column(name, overflow="fold")
    for row in found:
        origin = row["lineage"]
        where = f"{str(origin['input_uri']).rsplit('/', 1)[-1]}:{origin['row_group']}:{origin['row']}"
        table.add_row(*(Text(str(row[n])[:200]) for n in names), Text(where))
    stdout_console().print(table, highlight=False)


@cli.command()
@_json_option
def models(as_json: bool) -> None:
    """List the models that Herd knows by name. Any other model that vLLM runs goes by hub id or path."""
    if as_json:
        _print_json([inspect.profile_facts(p) for p in PROFILES.values()])
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("profile", "model", "params", "experts", "context", "placement"):
        table.add_column(name)
    for p in PROFILES.values():
        params, context = f"{p.total_parameters_b:,.0f}B", f"{p.context_tokens:,}" if p.context_tokens else "-"
        table.add_row(p.name, p.summary, params, str(p.experts), context, p.refused or p.gpus)
    stdout_console().print(table, highlight=False)


@cli.command()
@click.argument("job", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")
@_json_option
def doctor(job: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, and what a job needs from it, before a run. Exits with 4 if a check fails.

    \b
    herd doctor
    herd doctor job.yaml
    """
    from cluster.doctor import check_job, check_machine

    findings = check_machine()
    if job is not None:
        findings += check_job(with_profile(load_job(job, overrides)), resolve_model)
    if as_json:
        _print_json([f.to_json() for f in findings])
    else:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for f in findings:
            colour = {"pass": "green", "warn": "yellow", "fail": "red"}[f.verdict]
            table.add_row(Text(f.verdict, style=colour), Text(f.what), Text(f.found), Text(f.todo))
        stdout_console().print(table, highlight=False)
    sys.exit(4 if any(f.verdict == "fail" for f in findings) else 0)


def _print_facts(facts: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    for key, value in facts.items():
        shown = "\n".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{k}: {v}" for k, v in value.items())
        table.add_row(key.replace("_", " "), f"{shown:,}" if type(shown) is int else str(shown))
    stdout_console().print(table, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the `herd` command."""
    try:
        cli.main(prog_name="herd", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns the one into the other
        click.echo("Stopped. If the run had begun, running the same command again resumes it.", err=True)
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except HerdError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(e.exit_code)
    except Exception as e:  # a fault of ours; what is committed is no worse for it
        traceback.print_exc()
        click.echo(f"This is a fault of Herd itself: {type(e).__name__}. Nothing committed is lost.", err=True)
        sys.exit(HerdError.exit_code)
