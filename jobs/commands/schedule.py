"""`herd schedule`."""

import os
import sys
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import click

from cluster.manifests.kuberay import ray_cron_job_objects
from cluster.manifests.pods import stop_seconds
from jobs.commands.cluster import files_of, hand_over, output_option
from jobs.commands.options import json_option, set_option
from jobs.commands.site import SITE_NAMES, refuse_others, site_of, site_options
from jobs.schedule.cron import find_zone, next_runs, parse_cron
from jobs.schedule.timers import Scheduled, crontab_line, systemd_units
from jobs.sending import job_to_send

_COMMON = {"job", "cron", "target", "output", "ds", "overrides", "as_json"}
_KNOWN = {
    "kubernetes": SITE_NAMES | {"time_zone", "suspend"},
    "systemd": {"time_zone"},
    "crontab": set(),
}


@click.command()
@click.argument("job")
@click.option("--cron", required=True, help="When: minute hour day month weekday, such as '0 2 * * *'.")
@click.option("--target", type=click.Choice(list(_KNOWN)), default="kubernetes", show_default=True, help="Who runs it.")
@click.option("--time-zone", help="Time zone of --cron. Default: UTC on Kubernetes, else this machine's.")
@click.option("--ds", type=click.Choice(["today", "yesterday"]), help="Day that a dated job runs for. Default: today.")
@click.option("--suspend", is_flag=True, help="Make the RayCronJob, and let it rest.")
@site_options
@set_option
@output_option
@json_option
def schedule(
    job: str,
    cron: str,
    target: str,
    time_zone: str | None,
    ds: str | None,
    suspend: bool,
    overrides: tuple[str, ...],
    output: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Have JOB run again and again: a KubeRay RayCronJob, a systemd timer, or a line of crontab.

    A job whose name, input or output holds {{ ds }} is told the day (in UTC) when it runs; each day has its own output.

    \b
    herd schedule job.yaml --cron "0 2 * * *" --image registry/herd:0.1.0-gpu --output k8s
    herd schedule job.yaml --cron "0 2 * * mon-fri" --target systemd --ds yesterday --output units
    herd schedule job.yaml --cron "*/30 * * * *" --target crontab
    """
    refuse_others(_COMMON | _KNOWN[target], f"--target {target}")
    times = parse_cron(cron)
    zone: tzinfo = find_zone(time_zone) if time_zone else UTC if target == "kubernetes" else _local_zone()
    runs = [run.isoformat() for run in next_runs(times, datetime.now(zone), 3)]
    sent = job_to_send(job, overrides, ds=ds, default_ds="today")
    folder = output or "FOLDER"
    if target == "kubernetes":
        objects = ray_cron_job_objects(sent, site_of(options), times.text, time_zone=time_zone, suspend=suspend)
        files = files_of(objects)
        then = [
            f"kubectl apply -f {folder}   (the KubeRay operator needs its feature gate RayCronJob)",
            f"kubectl get raycronjob {sent.name} --watch",
        ]
    else:
        day = ("--ds", sent.ds) if sent.ds else ()
        changes = tuple(part for override in overrides for part in ("--set", override))
        command = (*_herd(), "run", _absolute(job), *changes, *day)
        scheduled = Scheduled(sent.config.name, command, os.getcwd(), stop_seconds(sent.config))
        if target == "systemd":
            files = systemd_units(scheduled, times, time_zone)
            timer = next(name for name in files if name.endswith(".timer"))
            then = [
                f"cp {folder}/herd-* ~/.config/systemd/user/ && systemctl --user daemon-reload",
                f"systemctl --user enable --now {timer} && loginctl enable-linger",
            ]
        else:
            files = {"crontab": crontab_line(scheduled, times)}
            then = [f"(crontab -l; cat {folder}/crontab) | crontab -"]
    if not as_json:
        for run in runs:
            click.echo(f"next run  {run}", err=True)
    hand_over(files, output, as_json, then, cron=times.text, next_runs=runs)


def _herd() -> tuple[str, ...]:
    """The command of this installation, since a scheduler has a search path of its own."""
    beside = Path(sys.executable).parent / "herd"
    return (str(beside),) if beside.exists() else (sys.executable, "-m", "jobs")


def _absolute(job: str) -> str:
    return str(Path(job).resolve())


def _local_zone() -> tzinfo:
    """This machine's time zone, with its changes of clocks."""
    if name := os.environ.get("TZ"):
        return find_zone(name)
    try:
        with open("/etc/localtime", "rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError):
        return UTC  # as the C library has it where there is no such file
