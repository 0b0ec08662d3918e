"""`herd run`, `herd resume` and `herd replay`."""

import sys
from typing import Any

import click

from jobs.commands.options import (
    cluster_options,
    job_of,
    job_options,
    json_option,
    preflight_option,
    set_option,
    storage,
    store_options,
)
from jobs.commands.printing import print_json
from jobs.display import print_summary
from jobs.jobfile import amended
from pipeline.budget import allowed_rows


def _report(finished: Any, as_json: bool) -> None:
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


@click.command()
@job_options
@cluster_options
@preflight_option
@json_option
def run(as_json: bool, address: str | None, verbose: bool, preflight: bool, **options: Any) -> None:
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

    finished = run_job(job_of(options), address=address, quiet=as_json, verbose=verbose, preflight=preflight)
    _report(finished, as_json)


@click.command()
@click.argument("out")
@set_option
@store_options
@cluster_options
@preflight_option
@json_option
def resume(
    out: str,
    overrides: tuple[str, ...],
    endpoint_url: str | None,
    anonymous: bool,
    as_json: bool,
    address: str | None,
    verbose: bool,
    preflight: bool,
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
            storage(endpoint_url, anonymous),
            amend=lambda config: amended(config, overrides),
            address=address,
            quiet=as_json,
            verbose=verbose,
            preflight=preflight,
        ),
        as_json,
    )


@click.command()
@click.argument("out")
@click.option("--stage", help="Only rows that failed at this stage: image, render, engine, answer.")
@click.option("--type", "error_type", help="Only rows with this error type.")
@set_option
@store_options
@cluster_options
@preflight_option
@json_option
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
    preflight: bool,
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
            storage(endpoint_url, anonymous),
            keep,
            amend=lambda config: amended(config, overrides),
            address=address,
            quiet=as_json,
            verbose=verbose,
            preflight=preflight,
        ),
        as_json,
    )
