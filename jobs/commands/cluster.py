"""`herd cluster`: what brings a cluster up."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from cluster.manifests.dockerfiles import dockerfile
from cluster.manifests.kuberay import ray_cluster_objects, ray_cron_job_objects, ray_job_objects
from cluster.manifests.launcher import NOTES, Aws, launcher_config
from cluster.manifests.text import yaml_text
from jobs.commands.options import json_option, set_option
from jobs.commands.printing import print_json
from jobs.commands.site import SITE_NAMES, refuse_others, site_of, site_options
from jobs.schedule.cron import find_zone, parse_cron
from jobs.sending import job_to_send
from pipeline import __version__
from pipeline.errors import ConfigError

_COMMON = {"job", "kind", "output", "overrides", "as_json"}
_RUN = {"retries", "deadline_s", "ttl_s", "ds"}
_CRON = {"cron", "time_zone", "suspend"}
_AWS = {"region", "ami", "instance_type", "instance_profile", "placement_group"}
_KNOWN = {
    "rayjob": SITE_NAMES | {"ds"},
    "raycluster": SITE_NAMES - _RUN,
    "raycronjob": SITE_NAMES | {"ds"} | _CRON,
    "launcher": {"image", "nodes", "gpus_per_node", "shm", "spot", "env"} | _AWS,
    "dockerfile-gpu": set(),
    "dockerfile-cpu": set(),
}


def output_option(f: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--output", metavar="FOLDER", help="Write files there. Default: print them.")(f)


def hand_over(files: dict[str, str], output: str | None, as_json: bool, then: Sequence[str], **facts: Any) -> None:
    """Writes files to a folder or prints them, and says what comes next; `facts` go into the JSON document."""
    paths = []
    if output is not None:
        try:
            Path(output).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                paths.append(str(Path(output) / name))
                Path(paths[-1]).write_text(text)
        except OSError as e:
            raise ConfigError(f"The files cannot be written: {e.strerror}", where=output) from None
    if as_json:
        print_json({"files": files, "written": paths, "next": list(then), **facts})
        return
    if output is None:
        click.echo(("---\n" if len(files) > 1 else "").join(files.values()), nl=False)
    for path in paths:
        click.echo(path)
    for line in [*([] if output else ["with --output FOLDER:"]), *then]:
        click.echo(line, err=True)


def files_of(objects: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Kubernetes objects as files, one each, named by their kinds."""
    return {f"{o['kind'].lower()}.yaml": yaml_text([o]) for o in objects}


@click.group()
def cluster() -> None:
    """Bring a cluster up: KubeRay's manifests, Ray's launcher file, image recipes."""


@cluster.command()
@click.argument("job", required=False)
@click.option("--kind", type=click.Choice(list(_KNOWN)), default="rayjob", show_default=True, help="What to write.")
@site_options
@click.option("--ds", help="Day of a dated job: 2026-11-25, today, yesterday.")
@click.option("--cron", help="Times of a raycronjob: minute hour day month weekday.")
@click.option("--time-zone", help="Time zone of --cron. Default: that of the KubeRay operator, mostly UTC.")
@click.option("--suspend", is_flag=True, help="Make the raycronjob, and let it rest.")
@click.option("--region", default="us-west-2", show_default=True, help="AWS region of a launcher file.")
@click.option("--ami", help="AMI of the launcher's nodes, with an NVIDIA driver and Docker.")
@click.option("--instance-type", help="EC2 type of the launcher's workers. Default: p5.48xlarge for H100.")
@click.option("--instance-profile", metavar="ARN", help="Instance profile by which the launcher's nodes reach S3.")
@click.option("--placement-group", help="EC2 placement group of the launcher's workers.")
@set_option
@output_option
@json_option
def render(
    job: str | None,
    kind: str,
    output: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Write what brings up a cluster that fits JOB, and runs it.

    \b
    herd cluster render job.yaml --image registry/herd:0.1.0-gpu --output k8s
    herd cluster render job.yaml --kind raycluster --image registry/herd:0.1.0-gpu --nodes 2 --spot
    herd cluster render job.yaml --kind launcher --image registry/herd:0.1.0-gpu --ami ami-0123456789abcdef0
    herd cluster render --kind dockerfile-gpu > gpu.Dockerfile
    """
    refuse_others(_COMMON | _KNOWN[kind], f"--kind {kind}")
    if kind.startswith("dockerfile"):
        if job is not None:
            job_to_send(job, overrides, default_ds="today")  # a recipe is the same for all jobs that can run
        name = kind.removeprefix("dockerfile-")
        build = f"docker build -f {name}.Dockerfile -t herd-batch:{__version__}-{name} .   in the repository's root"
        hand_over({f"{name}.Dockerfile": dockerfile(name)}, output, as_json, [build])
        return
    if job is None:
        raise ConfigError("The cluster's size is the job's, and no JOB is given", where=f"--kind {kind}")
    scheduled = kind == "raycronjob"
    dated = job_to_send(job, overrides, ds=options["ds"], default_ds="today" if kind != "rayjob" else None)
    site = site_of(options)
    folder = output or "FOLDER"
    if kind == "launcher":
        if not options["ami"]:
            raise ConfigError("No AMI is named, and Ray's own is too old for these GPUs", where="--ami")
        aws = Aws(**{name: options[name] for name in _AWS})
        text = yaml_text([launcher_config(dated, site, aws)], notes=NOTES)
        hand_over({"launcher.yaml": text}, output, as_json, [f"ray up {folder}/launcher.yaml"])
        return
    if scheduled:
        if not options["cron"]:
            raise ConfigError("A raycronjob needs its times", where="--cron", todo='Such as --cron "0 2 * * *".')
        zone = options["time_zone"]
        if zone:
            find_zone(zone)
        times = parse_cron(options["cron"]).text
        objects = ray_cron_job_objects(dated, site, times, time_zone=zone, suspend=options["suspend"])
    else:
        objects = (ray_job_objects if kind == "rayjob" else ray_cluster_objects)(dated, site)
    namespace = f" --namespace {site.namespace}" if site.namespace else ""
    watch = f"kubectl get {kind} {dated.name}{namespace} --watch"
    hand_over(files_of(objects), output, as_json, [f"kubectl apply -f {folder}", watch])
