"""The date of a job: `{{ ds }}` in its name, input and output, and which days a command is for. Pure.

A job file is data. So an expression may name the date and write it in some form, and nothing else of Jinja2 is let through:
no blocks, no arithmetic, no filters, no other attribute. What it is made of is looked at before any of it is evaluated.
Prompt templates are over rows; they stand under other keys and are not touched.
"""

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from jinja2 import nodes

from pipeline.errors import ConfigError, RowError
from pipeline.render.template import Template, parse

KEYS = ("name", "input.uri", "output.uri")
"""The keys of a job that may hold the date."""
NAMES = ("ds", "ds_nodash", "ds_add")
_ALLOWED = (nodes.Output, nodes.TemplateData, nodes.Name, nodes.Call, nodes.Getattr, nodes.Const, nodes.Neg)
_FORMS = "{{ ds }}, {{ ds_nodash }}, {{ ds_add(-1) }} or {{ ds.strftime('%Y/%m/%d') }}"
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def parse_days(text: str) -> list[date]:
    """The days that `--ds` names: `2026-11-25`, `today` or `yesterday` (in UTC), or a range `FIRST..LAST` of these, both
    included.

    Raises:
        ConfigError: it is none of these.
    """
    first, dots, last = text.partition("..")
    begin = _day(first, text)
    end = _day(last, text) if dots else begin
    if end < begin:
        raise ConfigError(f"The range ends before it begins: {text}", where="--ds", todo="Write it FIRST..LAST.")
    return [begin + timedelta(n) for n in range((end - begin).days + 1)]


def _day(text: str, whole: str) -> date:
    today = datetime.now(UTC).date()
    named = {"today": today, "yesterday": today - timedelta(1)}
    if text in named:
        return named[text]
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # as 2026-02-30 is none
    raise ConfigError(
        f"`{whole}` is no date", where="--ds", todo="Write 2026-11-25, today, yesterday, or 2026-11-01..2026-11-07."
    )


def is_dated(data: dict[str, Any]) -> bool:
    """Whether a job's plain data holds an expression over the date, or what should be one."""
    return any("{{" in text for key in KEYS for text in _texts(_at(data, key)))


def _at(data: dict[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    holder = data.get(section) if section else data
    return holder.get(name) if isinstance(holder, dict) else None


def with_date(data: dict[str, Any], day: date | None, *, where: str | None = None) -> dict[str, Any]:
    """A job's plain data with the date filled in under `KEYS`; all else as it is.

    Raises:
        ConfigError: an expression is not one over the date, or the job needs a day that is not given, or takes none.
    """
    was_dated = is_dated(data)
    for key in KEYS:
        value = _at(data, key)
        if not any("{{" in text for text in _texts(value)):
            continue
        if day is None:
            raise ConfigError(
                f"The job is for a day, by its `{key}`, and none is given",
                where=where,
                todo="Say which: --ds 2026-11-25, --ds today or --ds yesterday.",
            )
        made = [_filled(v, key, day) for v in value] if isinstance(value, list) else _filled(value, key, day)
        section, _, name = key.rpartition(".")
        data = {**data, **({section: {**data[section], name: made}} if section else {name: made})}
    if day is not None and not was_dated:
        raise ConfigError(
            "--ds was given, and the job does not use the date",
            where=where,
            todo=f"Leave it out, or write {{{{ ds }}}} in {' or '.join(KEYS)}.",
        )
    return data


def _texts(value: Any) -> Iterator[str]:
    yield from (v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str))


def _filled(text: Any, key: str, day: date) -> Any:
    if not isinstance(text, str) or "{{" not in text:
        return text
    if not all(_is_form(node) for node in parse(text, key).find_all(nodes.Node)):
        raise ConfigError(f"This is no expression over the date: {text}", where=key, todo=f"Write {_FORMS}.")
    values = {"ds": day, "ds_nodash": f"{day:%Y%m%d}", "ds_add": _Add(day)}
    try:
        return Template(text, key).render(values)
    except RowError as e:
        raise ConfigError(f"The date cannot be written so: {e}", where=key, todo=f"Write {_FORMS}.") from None


class _Add:
    """`ds_add(days)`: the date so many days later. Has no text of its own."""

    def __init__(self, day: date) -> None:
        self._day = day

    def __call__(self, days: int) -> date:
        return self._day + timedelta(days)

    def __str__(self) -> str:
        raise TypeError("ds_add wants a number of days, such as ds_add(-1)")


def _is_form(node: nodes.Node) -> bool:
    match node:
        case nodes.Output(nodes=printed):
            return all(isinstance(p, nodes.TemplateData | nodes.Call | nodes.Name | nodes.Const) for p in printed)
        case nodes.Name(name=name):
            return name in NAMES
        case nodes.Getattr(attr=attr):
            return bool(attr == "strftime")
    return isinstance(node, _ALLOWED)
