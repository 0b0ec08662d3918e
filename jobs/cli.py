"""The `herd` command: the group of its verbs, and how faults end it."""

import sys
import traceback

import click

from jobs.commands import bench, cluster, doctor, look, models, plan, run, schedule, submit
from pipeline import __version__
from pipeline.errors import HerdError

EXAMPLES = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}


@click.group(context_settings=EXAMPLES)
@click.version_option(__version__, prog_name="herd")
def cli() -> None:
    """Batch inference for the Llama 4 herd, and any model that vLLM runs, on Ray.

    \b
    A job in a file:          herd run job.yaml
    The same, changed:        herd run job.yaml --set sampling.max_tokens=64
    No file at all:           herd run --model ./model --input 'data/*.parquet' \\
                                       --prompt 'Summarise: {{ text }}' --output ./out
    Is all of it there?       herd verify ./out
    What came out?            herd show ./out
    It was stopped:           herd resume ./out
    On a cluster, for hours:  herd submit job.yaml --address http://head:8265

    \b
    Exit codes: 0 done and complete, 2 bad command or configuration, 3 done but more rows
    quarantined than allowed, 4 failed and resumable, 130 interrupted and resumable.
    """


for _command in (
    run.run,
    plan.plan,
    run.resume,
    look.status,
    look.verify,
    look.show,
    run.replay,
    models.models,
    doctor.doctor,
    bench.bench,
    submit.submit,
    submit.logs,
    submit.stop,
    cluster.cluster,
    schedule.schedule,
):
    cli.add_command(_command)


def main() -> None:
    """Entry point of the `herd` command."""
    try:
        cli.main(prog_name="herd", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):  # click turns the one into the other
        click.echo("Stopped. If the run had begun, running the same command again resumes it.", err=True)
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except HerdError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(e.exit_code)
    except Exception as e:  # a fault of ours; what is committed is no worse for it
        traceback.print_exc()
        click.echo(f"This is a fault of Herd itself: {type(e).__name__}. Nothing committed is lost.", err=True)
        sys.exit(HerdError.exit_code)
