"""`herd doctor`."""

import sys

import click
from rich.table import Table
from rich.text import Text

from cluster.models import resolve_model, with_profile
from jobs.commands.options import ds_option, json_option, one_day
from jobs.commands.printing import print_json
from jobs.display import stdout_console
from jobs.jobfile import load_job
from pipeline.errors import ConfigError


@click.command()
@click.argument("job", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")
@ds_option
@json_option
def doctor(job: str | None, ds: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine, and what a job needs from it, before a run. Exits with 4 if a check fails.

    \b
    herd doctor
    herd doctor job.yaml
    """
    from cluster.doctor import check_job, check_machine

    findings = check_machine()
    if job is not None:
        findings += check_job(with_profile(load_job(job, overrides, day=one_day(ds))), resolve_model)
    elif ds is not None:
        raise ConfigError("--ds goes with a job")
    if as_json:
        print_json([f.to_json() for f in findings])
    else:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for f in findings:
            colour = {"pass": "green", "warn": "yellow", "fail": "red"}[f.verdict]
            table.add_row(Text(f.verdict, style=colour), Text(f.what), Text(f.found), Text(f.todo))
        stdout_console().print(table, highlight=False)
    sys.exit(4 if any(f.verdict == "fail" for f in findings) else 0)
