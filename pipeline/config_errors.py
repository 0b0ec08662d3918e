"""Turns pydantic's findings about a job into one paragraph: which key, what is wrong, and the nearest known key."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.config import RunConfig
from pipeline.errors import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean ...?` with the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""


def parse_config(data: Any, *, where: str | None = None) -> RunConfig:
    """A `RunConfig` from plain data.

    Raises:
        ConfigError: naming every key that is wrong, with the nearest known one for an unknown key.
    """
    if not isinstance(data, dict):
        raise ConfigError("The job is not a mapping of keys to values", where=where, todo="See `herd run --help`.")
    try:
        return RunConfig.model_validate(data)
    except ValidationError as e:
        found = "; ".join(_sentence(error) for error in e.errors())
        raise ConfigError(f"The job does not check: {found}", where=where) from None


def _sentence(error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    path = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = _fields_at(loc[:-1])
        advice = nearest(loc[-1], known) or f" Known here: {', '.join(known)}"
        return f"unknown key `{path}`.{advice}"
    if error["type"] == "missing":
        return f"`{path}` is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if not path:
        return message
    value = error.get("input")
    # an address may carry credentials, and this sentence goes to logs
    given = "" if isinstance(value, dict | list) or "@" in str(value) else f" (given: {value!r})"
    return f"`{path}`: {message[0].lower()}{message[1:]}{given}"


def _fields_at(path: list[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for key in path:
        field = model.model_fields.get(key)
        if field is None:
            return []
        inner = [t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type)]
        found = [t for t in inner if issubclass(t, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)
