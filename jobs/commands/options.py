"""Options that several commands take, and what they make of them."""

import json
from collections.abc import Callable
from typing import Any

import click

from jobs.jobfile import adhoc_job, load_job
from pipeline.config import RunConfig, StorageConfig


def set_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")(f)


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
            set_option,
        )
    ):
        f = option(f)
    return f


def job_of(options: dict[str, Any]) -> RunConfig:
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


def storage(endpoint_url: str | None, anonymous: bool) -> StorageConfig:
    return StorageConfig(endpoint_url=endpoint_url, anonymous=anonymous)
