"""Options that several commands take, and what they make of them."""

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import click

from jobs.dates import parse_days
from jobs.jobfile import adhoc_job, load_job
from pipeline.config import RunConfig, StorageConfig
from pipeline.errors import ConfigError


def set_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")(f)


def ds_option(f: Callable[..., Any]) -> Callable[..., Any]:
    shown = "Day (UTC) of a job that depends on one: 2026-11-25, today, yesterday; for `run` also a range FIRST..LAST."
    return click.option("--ds", metavar="DAY", help=shown)(f)


def json_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")(f)


def cluster_options(f: Callable[..., Any]) -> Callable[..., Any]:
    f = click.option("--verbose", is_flag=True, help="Show the log lines of Ray and vLLM.")(f)
    return click.option("--address", help="Ray cluster to run on, such as `auto`. Default: RAY_ADDRESS, else here.")(f)


def preflight_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--preflight/--no-preflight", default=True, show_default=True, help="Check the nodes before engines start."
    )(f)


def store_options(f: Callable[..., Any]) -> Callable[..., Any]:
    f = click.option("--anonymous", is_flag=True, help="Reach OUT without credentials.")(f)
    return click.option("--endpoint-url", help="Endpoint of the S3-compatible store that OUT is on.")(f)


def job_options(f: Callable[..., Any]) -> Callable[..., Any]:
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
            click.option("--limit", type=click.IntRange(min=1), help="Only the first rows of the input."),
            click.option("--sample", type=click.IntRange(min=1), help="Only so many rows, spread over all files."),
            click.option("--seed", type=int, help="With --sample: another seed chooses other rows. Default: 0."),
            ds_option,
            set_option,
        )
    ):
        f = option(f)
    return f


def job_of(options: dict[str, Any]) -> RunConfig:
    """The job that `job_options` describe, for at most one day."""
    day = one_day(options.pop("ds"))
    return _job(options, day)


def jobs_of(options: dict[str, Any]) -> list[tuple[date | None, RunConfig]]:
    """The same for each day of `--ds`; one job, for no day, without it."""
    ds = options.pop("ds")
    days: list[date | None] = [None] if ds is None else [*parse_days(ds)]
    return [(day, _job(dict(options), day)) for day in days]


def one_day(ds: str | None) -> date | None:
    """The day of `--ds` where it cannot be a range."""
    if ds is None:
        return None
    first, *more = parse_days(ds)
    if more:
        raise ConfigError("A range of days goes with `herd run` alone", where="--ds", todo="Give one day.")
    return first


def _job(options: dict[str, Any], day: date | None) -> RunConfig:
    given = {
        "model": options["model"],
        "input.uri": options["input_uri"],
        "input.limit": options["limit"],
        "input.sample.rows": options["sample"],
        "input.sample.seed": options["seed"],
        "prompt.user": options["prompt"],
        "prompt.system": options["system"],
        "input.images": options["image_column"],
        "output.uri": options["output"],
        "sampling.max_tokens": options["max_tokens"],
        "answer.choice": options["choice"],
    }
    job, overrides = options["job"], options["overrides"]
    if job is None:
        return adhoc_job(given, overrides, day=day)
    own = [
        f"{k}={json.dumps(list(v) if isinstance(v, tuple) else v, ensure_ascii=False)}"
        for k, v in given.items()
        if v not in (None, ())
    ]
    return load_job(job, [*own, *overrides], day=day)


def storage(endpoint_url: str | None, anonymous: bool) -> StorageConfig:
    return StorageConfig(endpoint_url=endpoint_url, anonymous=anonymous)
