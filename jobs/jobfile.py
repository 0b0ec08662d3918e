"""Job files: YAML with `--set` overrides, or no file at all. YAML is loaded safely and holds data, never code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import RunConfig
from pipeline.config_errors import parse_config
from pipeline.errors import ConfigError


def load_job(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The job in a YAML file, with `key.path=value` overrides (values are YAML).

    Raises:
        ConfigError: the file is missing, is not YAML, or does not check.
    """
    return parse_config(read_job(path, overrides), where=path)


def read_job(path: str, overrides: Sequence[str] = ()) -> Any:
    """The plain data of a YAML file with overrides, not yet checked.

    Raises:
        ConfigError: the file is missing, or is not YAML.
    """
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        raise ConfigError("There is no such job file", where=path, todo="See `herd run --help` for one.") from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"The job file cannot be read: {e}", where=path) from None
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"The job file is not YAML: {getattr(e, 'problem', e)}", where=f"{path}{line}") from None
    if isinstance(data, dict):
        apply_overrides(data, overrides)
    return data


def adhoc_job(given: dict[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A job from command-line options alone; `given` maps dotted keys to values, and None means not given.

    Raises:
        ConfigError: it does not check.
    """
    data: dict[str, Any] = {"name": "adhoc"}
    for key, value in given.items():
        if value is not None and value != ():
            set_key(data, key, list(value) if isinstance(value, tuple) else value)
    apply_overrides(data, overrides)
    return parse_config(data)


def amended(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The job of an earlier run with `key.path=value` overrides.

    Raises:
        ConfigError: it does not check, or an override would send the output elsewhere.
    """
    if not overrides:
        return config
    data = config.model_dump(mode="json", exclude_unset=True)
    apply_overrides(data, overrides)
    changed = parse_config(data, where="--set")
    if changed.output.uri != config.output.uri:
        raise ConfigError("A run stays where its output is", where="--set output.uri")
    return changed


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"`{override}` is not of the form key.path=value", where="--set")
        try:
            set_key(data, key, yaml.safe_load(value))
        except (yaml.YAMLError, ValueError):
            set_key(data, key, value)


def set_key(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        inner = data.get(parent)
        if not isinstance(inner, dict):
            inner = data[parent] = {}
        data = inner
    data[last] = value
