"""How commands print: one JSON document, a table, or facts one below the other."""

import json
from typing import Any

import click
from rich.table import Table

from jobs.display import stdout_console


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, default=str))


def print_facts(facts: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold")
    for key, value in facts.items():
        shown = "\n".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{k}: {v}" for k, v in value.items())
        table.add_row(key.replace("_", " "), f"{shown:,}" if type(shown) is int else str(shown))
    stdout_console().print(table, soft_wrap=True, highlight=False, markup=False)
