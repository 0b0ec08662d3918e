"""A job file on its way to another machine: as it stands, with overrides, and with its date left open until it runs there."""

import re
from collections.abc import Sequence
from typing import Any

from cluster.manifests.kuberay import JobToSend
from cluster.manifests.text import yaml_text
from cluster.models import with_profile
from jobs.choosing import shaped
from jobs.jobfile import read_job
from pipeline.config_errors import parse_config
from pipeline.errors import ConfigError

DATED_KEYS = ("name", "input.uri", "output.uri")
_DAY = r"(today|yesterday|[0-9]{4}-[0-9]{2}-[0-9]{2})"
_DATE_EXPRESSION = re.compile(r"\{\{.*?\}\}", re.DOTALL)


def job_to_send(
    path: str, overrides: Sequence[str] = (), *, ds: str | None = None, default_ds: str | None = None
) -> JobToSend:
    """The job in a YAML file, to be run elsewhere for the day `ds`; a job that uses the date and is given none runs for
    `default_ds`. What is sent is what was checked: the file's data with its overrides, without its comments.

    Raises:
        ConfigError: it does not check, or needs a day that is not given, or is given one that it does not use.
    """
    data = read_job(path, overrides)
    if not isinstance(data, dict):
        parse_config(data, where=path)  # says what is wrong with it
    stand_in, is_dated = _without_dates(data)
    config = shaped(with_profile(parse_config(stand_in, where=path)))
    if ds is not None and not re.fullmatch(rf"{_DAY}(\.\.{_DAY})?", ds):
        raise ConfigError(f"`{ds}` is no date", where="--ds", todo="Write 2026-11-25, today or yesterday.")
    if ds is not None and not is_dated:
        raise ConfigError(
            "--ds was given, and the job does not use the date",
            where=path,
            todo=f"Leave it out, or write {{{{ ds }}}} in {' or '.join(DATED_KEYS)}.",
        )
    day = (ds or default_ds) if is_dated else None
    if is_dated and day is None:
        raise ConfigError("The job is for a day, and none is given", where=path, todo="Say which: --ds today.")
    return JobToSend(config, yaml_text([data]), day)


def _without_dates(data: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The data with a word in place of each expression over the date, to check all else of it; and whether there was one."""
    is_dated = False

    def filled(value: Any) -> Any:
        nonlocal is_dated
        if isinstance(value, list):
            return [filled(v) for v in value]
        if not isinstance(value, str):
            return value
        text, count = _DATE_EXPRESSION.subn("ds", value)
        is_dated = is_dated or count > 0
        return text

    for key in DATED_KEYS:
        section, _, name = key.rpartition(".")
        holder = data.get(section) if section else data
        if isinstance(holder, dict) and name in holder:
            made = filled(holder[name])
            data = {**data, **({section: {**holder, name: made}} if section else {name: made})}
    return data, is_dated
