"""`herd submit`, `herd logs` and `herd stop`: jobs on a Ray cluster that go on without this machine."""

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from cluster.models import with_profile
from jobs.commands.kubernetes import kubernetes_options, submit_by_kubectl
from jobs.commands.options import job_of, job_options, json_option, preflight_option
from jobs.commands.printing import print_facts, print_json
from jobs.commands.site import SITE_NAMES, refuse_others
from pipeline.errors import ConfigError


def jobs_address(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--address",
        metavar="URL",
        help="Dashboard of the cluster's head, such as http://head:8265; also auto, host:port, ray://. "
        "Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else a cluster on this machine.",
    )(f)


KUBERNETES_NAMES = SITE_NAMES | {"kube_context", "dry_run"}
FOR_KUBERNETES = KUBERNETES_NAMES | {"job", "overrides", "ds", "kubernetes", "as_json"}
FOR_RAY = frozenset(
    {"model", "input_uri", "prompt", "system", "image_column", "output", "max_tokens", "choice", "job", "overrides"}
    | {"limit", "sample", "seed", "ds"}
    | {"address", "follow", "package", "python", "preflight", "env", "as_json"}
)


@click.command()
@job_options
@jobs_address
@click.option("--follow/--no-follow", default=True, show_default=True, help="Show what the job says until it ends.")
@click.option(
    "--package/--no-package", default=True, show_default=True, help="Send Herd itself; or use what the nodes have."
)
@click.option("--python", metavar="PATH", help="Interpreter on the cluster's head. Default: the first on its PATH.")
@preflight_option
@click.option(
    "--kubernetes", is_flag=True, help="Instead as a RayJob of KubeRay, by kubectl; the options below are its."
)
@kubernetes_options
@json_option
def submit(
    address: str | None,
    follow: bool,
    package: bool,
    python: str | None,
    preflight: bool,
    kubernetes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run a job on a Ray cluster that goes on when this machine sleeps. Submit it again to follow it, or to resume it.

    Credentials are not passed on: nodes use their instance role, or the environment that their Ray was started in.

    \b
    herd submit job.yaml --address http://head:8265
    herd submit job.yaml --address http://head:8265 --no-follow --env AWS_REGION
    herd logs herd-cows-20261125T211153-5fcf8c --address http://head:8265 --follow
    herd submit job.yaml --kubernetes --image registry/herd:1 --service-account herd --spot

    Exits as `herd run` does once the job is over: 0, 2, 3, 4, or 130 if it was stopped; with --no-follow with 0.
    """
    from cluster.portable import forwarded, portable_job
    from cluster.submission import JobsApi
    from pipeline.engine.vllm_names import check_names

    if kubernetes:
        refuse_others(FOR_KUBERNETES, "--kubernetes")
        if options["job"] is None:
            raise ConfigError(
                "--kubernetes takes a job file", where="JOB", todo="Write one: `herd run --help` shows how."
            )
        submit_by_kubectl(options["job"], options["overrides"], options["ds"], as_json, options)
        return
    refuse_others(FOR_RAY, "Ray's Jobs API; it goes with --kubernetes")
    names = options.pop("env")
    for name in KUBERNETES_NAMES - {"env"}:
        options.pop(name)
    config = with_profile(given := job_of(options))
    check_names(config.engine, config.sampling)
    environment = forwarded(names, os.environ)
    api = JobsApi(address)
    job, warnings = portable_job(given, os.getcwd(), is_here=api.is_here)
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)
    sent = api.submit(job, environment, with_herd=package, python=python, preflight=preflight)
    click.echo(f"{'Submitted' if sent.is_new else 'Running already'}: {sent.id}", err=True)
    if follow:
        _follow(api, sent.id, as_json)
    elif as_json:
        print_json(api.state(sent.id).to_json())
    else:
        click.echo(sent.id)
        _say_next(api, sent.id)


@click.command()
@click.argument("job_id", metavar="ID")
@jobs_address
@click.option("--follow", is_flag=True, help="Go on until the job ends, and exit as it did.")
@json_option
def logs(job_id: str, address: str | None, follow: bool, as_json: bool) -> None:
    """Show what a submitted job has said.

    \b
    herd logs herd-cows-20261125T211153-5fcf8c --address http://head:8265
    """
    from cluster.submission import JobsApi

    api = JobsApi(address)
    if follow:
        _follow(api, job_id, as_json)
    said = api.logs(job_id)
    if as_json:
        print_json({"id": job_id, "logs": said})
    else:
        click.echo(said, nl=False)


@click.command()
@click.argument("job_id", metavar="ID")
@jobs_address
@json_option
def stop(job_id: str, address: str | None, as_json: bool) -> None:
    """Stop a submitted job, and wait until it has stopped: it commits what is in flight, and can be resumed.

    \b
    herd stop herd-cows-20261125T211153-5fcf8c --address http://head:8265
    """
    from cluster.submission import JobsApi

    state = JobsApi(address).stop(job_id)
    if as_json:
        print_json(state.to_json())
    else:
        click.echo(f"{state.id} {'had ' if state.state != 'stopped' else ''}{state.state}")
        if state.state == "stopped":
            click.echo("Submit the same job again to resume it.")


def print_job(job_id: str, address: str | None, as_json: bool) -> None:
    """The status of a submitted job, for `herd status ID`."""
    from cluster.submission import JobsApi

    api = JobsApi(address)
    state = api.state(job_id)
    if as_json:
        print_json(state.to_json())
        return
    print_facts({k: v for k, v in state.to_json().items() if v is not None})
    _say_next(api, job_id)
    if state.output:
        click.echo(f"herd status {state.output}   how far its run is")


def _follow(api: Any, job_id: str, as_json: bool) -> None:
    """Shows what the job says until it is over, on stderr where stdout is for JSON, and exits as the job did."""
    try:
        state = api.follow(job_id, lambda text: click.echo(text, nl=False, err=as_json))
    except KeyboardInterrupt:
        click.echo("\nThe job goes on without this command.", err=True)
        _say_next(api, job_id)
        sys.exit(130)
    if as_json:
        print_json({**state.to_json(), "exit_code": state.exit_code})
    elif state.state != "succeeded":
        code = state.driver_exit_code
        why = state.message or "no reason was given" if code is None else f"herd run exited with {code}"
        click.echo(f"{job_id} {state.state}: {why}", err=True)
    sys.exit(state.exit_code)


def _say_next(api: Any, job_id: str) -> None:
    for verb, what in (("logs", "what it says"), ("status", "how it fares"), ("stop", "stop it")):
        click.echo(f"herd {verb} {job_id} --address {api.address}   {what}", err=True)
