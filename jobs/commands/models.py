"""`herd models`."""

import click
from rich.table import Table

from cluster.gpus import parse_gpus
from cluster.profiles import PROFILES, find_profile
from jobs import inspect
from jobs.commands.options import json_option
from jobs.commands.printing import print_facts, print_json
from jobs.display import stdout_console
from pipeline.config_errors import nearest
from pipeline.errors import ConfigError


@click.command()
@click.argument("name", required=False)
@click.option("--gpus", metavar="NxGPU", help="GPUs to fit NAME on, such as 8xH100 or 2x8xH200. Default: each kind.")
@json_option
def models(name: str | None, gpus: str | None, as_json: bool) -> None:
    """List the models that Herd knows by name, or show where one of them fits. Any other model that vLLM runs goes by hub
    id or path.

    \b
    herd models
    herd models maverick --gpus 8xH200
    """
    if name is None:
        if gpus is not None:
            raise ConfigError("--gpus goes with the NAME of a model")
        _list(as_json)
        return
    profile = find_profile(name)
    if profile is None:
        raise ConfigError(
            f"There is no profile `{name}`.{nearest(name, PROFILES)}",
            where="NAME",
            todo=f"Known: {', '.join(PROFILES)}.",
        )
    facts = inspect.profile_facts(profile)
    fits = inspect.profile_fits(profile, parse_gpus(gpus) if gpus else None)
    if as_json:
        print_json({**facts, "on": fits})
        return
    print_facts({k: v for k, v in facts.items() if v is not None})
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("on", "engine", "engines", "weights a GPU", "context", "rows at a time", ""):
        table.add_column(column, overflow="fold")
    for f in fits:
        if f["fits"]:
            cells = (f["engine"], str(f["engines"]), f"{f['weights_gib_per_gpu']:.1f} GiB")
            table.add_row(f["gpus"], *cells, f"{f['max_model_len']:,}", f"{f['max_num_seqs']:,}", "")
        else:
            table.add_row(f["gpus"], "-", "0", "", "", "", f["reason"])
    if fits:
        stdout_console().print(table, highlight=False)


def _list(as_json: bool) -> None:
    known = [inspect.profile_facts(p) for p in PROFILES.values()]
    if as_json:
        print_json(known)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("profile", "model", "params", "experts", "context", "weights", "placement"):
        table.add_column(column)
    for facts in known:
        if facts["refused"]:
            table.add_row(facts["name"], facts["summary"], "", "", "", "", facts["refused"])
            continue
        numbers = (f"{facts['total_parameters_b']:,.0f}B", str(facts["experts"]), f"{facts['context_tokens']:,}")
        table.add_row(facts["name"], facts["summary"], *numbers, f"{facts['weights_gib']:,.0f} GiB", facts["gpus"])
    stdout_console().print(table, highlight=False)
