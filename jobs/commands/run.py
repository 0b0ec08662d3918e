"""`herd run`, `herd resume` and `herd replay`."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from jobs.commands.options import (
    cluster_options,
    job_options,
    jobs_of,
    json_option,
    preflight_option,
    set_option,
    storage,
    store_options,
)
from jobs.commands.report import line, report, report_several
from jobs.jobfile import amended
from jobs.root import is_root_of_runs, refuse_root
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

NOTHING_NEW = "Nothing to do: every file of the input was taken by an earlier run, and all of these are finished."


@click.command()
@job_options
@click.option("--fail-fast", is_flag=True, help="With a range of days: stop at the first that fails.")
@cluster_options
@preflight_option
@json_option
def run(as_json: bool, address: str | None, verbose: bool, preflight: bool, fail_fast: bool, **options: Any) -> None:
    """Run a job, from a YAML file or from options alone. Run it again to resume it.

    \b
    herd run job.yaml
    herd run job.yaml --set pool.max=8 --set limits.max_quarantined_fraction=0.05
    herd run --model scout-int4 --input s3://bucket/photos/ --image-column photo \\
             --prompt 'Is there a cow in this photo?' --choice yes --choice no \\
             --set pool.accelerator=H100 --output s3://bucket/cows

    \b
    A look at some rows first, a job for a day, and one run a day of a range:
    herd run job.yaml --limit 20 --output ./look
    herd run job.yaml --sample 200 --output ./sample
    herd run daily.yaml --ds yesterday
    herd run daily.yaml --ds 2026-11-01..2026-11-07

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
    from jobs.backfill import check_outputs, run_days
    from jobs.incremental import run_incremental
    from jobs.launch import Launch, run_job
    from jobs.several import Outcome, attempted

    jobs = jobs_of(options)
    launch = Launch(address, quiet=as_json, verbose=verbose, preflight=preflight)
    is_range = len(jobs) > 1
    if fail_fast and not is_range:
        raise ConfigError("--fail-fast goes with a range of days, such as --ds 2026-11-01..2026-11-07")
    _, config = jobs[0]
    if options["job"] is None and options["output"] is None:
        click.echo(f"The answers go to {config.output.uri}", err=True)
    if not is_range and not config.input.incremental:
        report(run_job(config, launch), as_json)
        return

    def run_one(name: str, config: RunConfig) -> Iterator[Outcome]:
        if config.input.incremental:
            for outcome in run_incremental(config, launch):
                yield replace(outcome, name=f"{name} {outcome.name}".strip())
        else:
            yield attempted(name, config.output.uri, lambda: run_job(config, launch))

    days = [(str(day) if is_range else "", config) for day, config in jobs]
    check_outputs(days)
    report_several(run_days(days, run_one, fail_fast=fail_fast, observe=line), as_json, none=NOTHING_NEW)


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
    """Continue the run in folder OUT with what is not committed yet, or all unfinished runs of an incremental job's root.

    Settings that change no answer may be set anew: pool, limits, rendering threads, batch sizes.

    \b
    herd resume ./out/digits
    herd resume ./out/digits --set pool.max=8 --set limits.max_quarantined_fraction=0.1
    """
    from jobs.incremental import resume_incremental
    from jobs.launch import Launch, resume_run

    reach = storage(endpoint_url, anonymous)
    launch = Launch(address, quiet=as_json, verbose=verbose, preflight=preflight)
    if is_root_of_runs(out, reach):
        outcomes = []
        for outcome in resume_incremental(out, reach, overrides, launch):
            line(outcome)
            outcomes.append(outcome)
        report_several(outcomes, as_json, none="Every run is finished.")
        return
    report(resume_run(out, reach, launch, amend=lambda config: amended(config, overrides)), as_json)


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
    from jobs.launch import Launch, replay_run

    def keep(row: dict[str, Any]) -> bool:
        return (stage is None or row["stage"] == stage) and (error_type is None or row["error_type"] == error_type)

    reach = storage(endpoint_url, anonymous)
    refuse_root(out, reach, "replay")
    launch = Launch(address, quiet=as_json, verbose=verbose, preflight=preflight)
    report(replay_run(out, reach, keep, launch, amend=lambda config: amended(config, overrides)), as_json)
