"""Commands that look at runs: `status`, `verify`, `show`."""

import sys

import click
from rich.table import Table
from rich.text import Text

from cluster.parcel import is_job_id
from jobs import inspect
from jobs.commands.options import json_option, storage, store_options
from jobs.commands.printing import print_facts, print_json
from jobs.commands.submit import jobs_address, print_job
from jobs.display import live_facts, stdout_console


@click.command()
@click.argument("out")
@store_options
@jobs_address
@json_option
def status(out: str, endpoint_url: str | None, anonymous: bool, address: str | None, as_json: bool) -> None:
    """Say how far the run in folder OUT is, from its commit records, and how its latest session fares: speed, engines,
    where time goes and what bounds it. Of an incremental job's root: how far its runs are. With the id of a submitted job:
    how that job fares on its cluster.

    \b
    herd status s3://bucket/labels/digits
    herd status herd-cows-20261125T211153-5fcf8c --address http://head:8265
    """
    if address is not None or is_job_id(out):
        print_job(out, address, as_json)
        return
    facts = inspect.status_facts(out, storage(endpoint_url, anonymous))
    if as_json:
        print_json(facts)
        return
    live, took = facts.pop("live"), facts.pop("spent", None)
    facts.pop("estimate", None)
    if took is not None:
        facts |= {"seconds": took["seconds"], "estimate": facts.pop("compared") or "none"}
    for run in facts.pop("by_run", ()):
        name, state = run.pop("run"), run.pop("status")
        facts[f"run {name}"] = ", ".join([state, *(f"{n:,} {key.replace('_', ' ')}" for key, n in run.items())])
    print_facts({**facts, **(live_facts(live) if live else {})})


@click.command()
@click.argument("out")
@store_options
@json_option
def verify(out: str, endpoint_url: str | None, anonymous: bool, as_json: bool) -> None:
    """Prove from the files alone that every planned row stands exactly once in data or quarantine. Of an incremental
    job's root: the same of all its runs, and that each input file was taken by exactly one of them.

    Exits with 0 if the run is complete, else with 4.

    \b
    herd verify s3://bucket/labels/digits
    """
    verdict = inspect.verdict(out, storage(endpoint_url, anonymous))
    if as_json:
        print_json(verdict.to_json())
    else:
        print_facts(verdict.to_json())
        click.echo("complete" if verdict.is_complete else "NOT complete")
    sys.exit(0 if verdict.is_complete else 4)


@click.command()
@click.argument("out")
@click.option("-n", "--rows", type=click.IntRange(min=1), default=10, show_default=True, help="Rows to show.")
@click.option("--quarantine", is_flag=True, help="Show quarantined rows and why.")
@click.option("--stage", help="With --quarantine: only this stage.")
@store_options
@json_option
def show(
    out: str, rows: int, quarantine: bool, stage: str | None, endpoint_url: str | None, anonymous: bool, as_json: bool
) -> None:
    """Show answers, or quarantined rows, of the run in folder OUT, or of the latest runs of an incremental job's root.

    \b
    herd show ./out/digits -n 3
    herd show ./out/digits --quarantine
    """
    found = inspect.rows(out, storage(endpoint_url, anonymous), rows, quarantine=quarantine, stage=stage)
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("no quarantined rows" if quarantine else "no answered rows yet")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = [n for n in found[0] if n != "lineage"]
    for name in [*names, "from"]:
        table.add_column(name, overflow="fold")
    for row in found:
        origin = row["lineage"]
        where = f"{str(origin['input_uri']).rsplit('/', 1)[-1]}:{origin['row_group']}:{origin['row']}"
        table.add_row(*(Text(str(row[n])[:200]) for n in names), Text(where))
    stdout_console().print(table, highlight=False)
