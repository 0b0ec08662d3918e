"""`herd plan`."""

from typing import Any

import click

from cluster.prices import parse_prices
from jobs.commands.options import job_of, job_options, json_option
from jobs.commands.printing import print_facts, print_json
from jobs.plan_display import print_plan
from jobs.planning import Question, plan_facts


@click.command()
@job_options
@click.option("--look", type=click.IntRange(min=0), default=512, show_default=True, help="Rows to look at; 0: none.")
@click.option("--look-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chooses which.")
@click.option("--gpus", help="GPUs to plan for, such as 8xH100 or 2x8xH100. Default: what the job's pool asks for.")
@click.option("--address", help="Ray cluster whose nodes to count engines on, such as `auto`. Default: none is asked.")
@click.option(
    "--like", multiple=True, metavar="OUT", help="Output of an earlier run to take speeds from; may be repeated."
)
@click.option("--price", multiple=True, metavar="GPU=USD", help="Price of a GPU and hour, such as H100=2.99.")
@json_option
def plan(
    as_json: bool,
    look: int,
    look_seed: int,
    gpus: str | None,
    address: str | None,
    like: tuple[str, ...],
    price: tuple[str, ...],
    **options: Any,
) -> None:
    """Say what a job would read, ask, take and cost. Reads footers and a sample of rows, and starts nothing.

    \b
    herd plan job.yaml
    herd plan job.yaml --gpus 8xH100 --price H100=2.99
    herd plan job.yaml --like s3://bucket/labels/yesterday
    herd plan job.yaml --look 0 --json
    """
    question = Question(look, look_seed, gpus, address, like, parse_prices(price))
    facts = plan_facts(job_of(options), question)
    if as_json:
        print_json(facts)
    elif facts["num_rows"]:
        print_plan(facts)
    else:
        print_facts(facts)
