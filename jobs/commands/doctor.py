"""`herd doctor`."""

import sys

import click
from rich.table import Table
from rich.text import Text

from cluster.models import with_profile
from cluster.preflight.findings import Finding, folded
from jobs.commands.options import ds_option, json_option, one_day, set_option
from jobs.commands.printing import print_json
from jobs.display import stdout_console
from jobs.jobfile import load_job
from pipeline.errors import ConfigError

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.argument("job", required=False)
@click.option(
    "--address", help="Check every node of this Ray cluster, such as `auto`. Default: this machine, without Ray."
)
@click.option(
    "--limit", "limit_s", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Seconds a node gets."
)
@set_option
@ds_option
@json_option
def doctor(
    job: str | None, address: str | None, limit_s: float, overrides: tuple[str, ...], ds: str | None, as_json: bool
) -> None:
    """Check this machine or every node of a cluster, and what a job needs of them, before a run. Exits with 4 if a check
    fails.

    \b
    herd doctor
    herd doctor job.yaml
    herd doctor job.yaml --address auto
    """
    from jobs.checkup import check_cluster, check_here
    from jobs.choosing import shaped

    if job is None and ds is not None:
        raise ConfigError("--ds goes with a job")
    config = None if job is None else shaped(with_profile(load_job(job, overrides, day=one_day(ds))))
    found = check_here(config) if address is None else check_cluster(config, address, limit_s)
    if as_json:
        print_json([f.to_json() for f in found])
    else:
        _print(found)
    sys.exit(4 if any(f.verdict == "fail" for f in found) else 0)


def _print(found: list[Finding]) -> None:
    num_nodes = len({f.node for f in found if f.node})
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for line in folded(found):
        nodes = line.nodes
        where = f"{len(nodes)} nodes" if len(nodes) > 2 or len(nodes) == num_nodes > 1 else ", ".join(nodes) or "job"
        f = line.finding
        table.add_row(
            Text(f.verdict, style=COLOURS[f.verdict]), Text(where), Text(f.what), Text(line.found), Text(f.todo)
        )
    stdout_console().print(table, highlight=False)
