"""`herd plan`."""

from typing import Any

import click

from cluster.models import with_profile
from jobs import inspect
from jobs.commands.options import job_of, job_options, json_option
from jobs.commands.printing import print_facts, print_json


@click.command()
@job_options
@json_option
def plan(as_json: bool, **options: Any) -> None:
    """Say what a job would do: files, rows, shards, columns. Reads footers only and starts nothing.

    \b
    herd plan job.yaml
    """
    facts = inspect.plan_facts(with_profile(job_of(options)))
    if as_json:
        print_json(facts)
        return
    print_facts(facts)
