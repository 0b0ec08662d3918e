"""Manifests as YAML text that every reader takes for the same data.

Objects are built as plain data and written here, never pasted together from templates: a value may hold anything that a
job file may hold. Strings are quoted wherever some YAML reader might see a number, a date or a boolean in them. Kubernetes'
reader takes `1e3` and `08` for numbers, where PyYAML sees strings and would leave the quotes out.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "y", "n", "null"))


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper with quotes of ours, and without anchors, which people find hard to read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _holds(line: str) -> bool:
    """Whether a line may stand in a block. Where one may not, PyYAML would turn to single quotes, which fold line breaks and
    lose some: U+0085 beside a line feed came back as another text."""
    return line.isprintable() and not line.endswith(" ")


def _string(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"'
    if "\n" in value and value[0] not in " \n" and all(_holds(line) for line in value.split("\n")):
        style = "|"
    elif _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        style = ""
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _string)


def yaml_text(documents: Iterable[Any], *, notes: Iterable[str] = ()) -> str:
    """YAML documents, one after another, below `notes` as comment lines. Keys keep their order."""
    head = "".join(f"# {' '.join(note.split())}\n" for note in notes)
    dumped = [
        yaml.dump(d, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"), default_flow_style=False)
        for d in documents
    ]
    return head + "---\n".join(dumped)
