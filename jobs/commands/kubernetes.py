"""Submission to Kubernetes: the options and the act, for `herd submit --kubernetes`."""

from collections.abc import Callable
from typing import Any

import click

from cluster.kubernetes import submit_to_kubernetes
from cluster.manifests.kuberay import ray_job_objects
from cluster.manifests.text import yaml_text
from jobs.commands.printing import print_json
from jobs.commands.site import site_of, site_options
from jobs.sending import job_to_send


def kubernetes_options(f: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a submission to Kubernetes, besides JOB, --set, --ds and --json: a cluster's, `--context` and
    `--dry-run`."""
    f = click.option("--dry-run", is_flag=True, help="Print the manifests and submit nothing.")(f)
    f = click.option("--context", "kube_context", help="Context of kubectl. Default: its current one.")(f)
    return site_options(f)


def submit_by_kubectl(
    job: str, overrides: tuple[str, ...], ds: str | None, as_json: bool, options: dict[str, Any]
) -> None:
    """Makes a RayJob of JOB, hands it to the cluster, and says how to watch it. `options` are those of
    `kubernetes_options`."""
    kube_context, dry_run = options.pop("kube_context"), options.pop("dry_run")
    site = site_of(options)
    objects = ray_job_objects(job_to_send(job, overrides, ds=ds), site, generate_name=True)
    if dry_run:
        if as_json:
            print_json({"objects": objects})
        else:
            click.echo(yaml_text(objects), nl=False)
        return
    submitted = submit_to_kubernetes(objects, context=kube_context, namespace=site.namespace)
    if as_json:
        print_json(submitted.to_json())
        return
    click.echo(f"{submitted.name} is on its way. Submitting again resumes its output.")
    for command in submitted.watch:
        click.echo(f"  {command}")
