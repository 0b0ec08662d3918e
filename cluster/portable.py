"""A job as the machines of a cluster read it: paths that do not depend on where the command was given, and no credentials.
Pure but for the look whether a model's name is a folder here."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.config import RunConfig
from pipeline.config_errors import parse_config
from pipeline.errors import ConfigError

SECRET_WORDS = re.compile(
    r"(apikey|auth|authorization|cookie|credentials?|dsn|jwt|keys?|pass|passphrase|passw(or)?d|pat|private|pwd|sas"
    r"|secrets?|signature|tokens?)"
)
SECRET_VALUE = re.compile(
    r"\w+://[^/\s]*:[^/\s]*@|-----BEGIN|\b(AKIA|ASIA)[A-Z0-9]{16}\b|\b(hf|ghp|gho|glpat|sk|xoxb|xoxp)[_-]\w{16,}|\beyJ\w+\.\w+\."
)
THE_CLUSTERS_OWN = ("PATH", "PYTHONPATH", "RAY_ADDRESS", "HOME")


def portable_job(config: RunConfig, folder: str, *, is_here: bool) -> tuple[RunConfig, list[str]]:
    """The job with paths that hold on other machines, and warnings. Relative paths are meant from `folder`; they are made
    absolute where the cluster `is_here`, on this machine.

    Raises:
        ConfigError: a path is relative or an endpoint is this machine's own, and the cluster is elsewhere.
    """
    data = config.model_dump(mode="json", exclude_unset=True)
    warnings: list[str] = []

    def moved(key: str, uri: str) -> str:
        if "://" in uri or uri.startswith("/"):
            return uri
        if not is_here:
            raise ConfigError(
                f"`{uri}` is a path of this machine, and the cluster is elsewhere",
                where=key,
                todo="Give s3://, or an absolute path that every node of the cluster has.",
            )
        path = os.path.normpath(os.path.join(folder, os.path.expanduser(uri)))
        warnings.append(f"{key}: `{uri}` is taken as {path}, which every node must have; s3:// needs no shared folder.")
        return path

    _change(
        data, "input.uri", lambda uris: [moved("input.uri", u) for u in ([uris] if isinstance(uris, str) else uris)]
    )
    _change(data, "output.uri", lambda uri: moved("output.uri", uri))
    _change(data, "cache.uri", lambda uri: moved("cache.uri", uri))
    if config.model is not None and config.engine.kind == "vllm" and _is_path(config.model, folder):
        data["model"] = moved("model", config.model)
    for section in ("input", "output", "cache"):
        endpoint = (data.get(section, {}).get("storage") or {}).get("endpoint_url")
        if endpoint and not is_here and is_loopback(endpoint):
            raise ConfigError(
                f"{endpoint} is this machine's own, and the cluster is elsewhere",
                where=f"{section}.storage.endpoint_url",
                todo="Name the store's endpoint as the cluster's nodes see it.",
            )
    return parse_config(data), warnings


def _change(data: dict[str, Any], path: str, change: Callable[[Any], Any]) -> None:
    section, key = path.split(".")
    inner = data.get(section)
    if isinstance(inner, dict) and inner.get(key) is not None:
        inner[key] = change(inner[key])


def _is_path(model: str, folder: str) -> bool:
    return model.startswith((".", "~")) or ("://" not in model and Path(folder, model).is_dir())


def is_loopback(url: str) -> bool:
    host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")  # noqa: S104


def forwarded(given: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for a job's environment, each given as NAME, with the value that it has here, or as NAME=VALUE. Ray and
    Kubernetes keep them in the cluster's records and show them to whoever reads these, so no secret goes in.

    Raises:
        ConfigError: a variable is not set, is the cluster's own, or looks like a secret by its name or its value.
    """
    secrets = {v for k, v in environment.items() if is_secret(k) and len(v) >= 8}
    out = {}
    for text in given:
        name, equals, value = text.partition("=")
        where = f"--env {name}"
        if not equals and name in environment:
            value = environment[name]
        elif not equals or not name:
            raise ConfigError("This variable is not set here", where=where, todo=f"Set it first: export {name}=...")
        if name in THE_CLUSTERS_OWN:
            raise ConfigError("This variable is the cluster's own on each node", where=where)
        if is_secret(name) or SECRET_VALUE.search(value) or any(secret in value for secret in secrets):
            raise ConfigError(
                "This looks like a credential, and a job's environment is shown to all who can see the cluster",
                where=where,
                todo="Give nodes an instance role, or set it where the cluster is started (on Kubernetes: --service-account, --secret).",
            )
        out[name] = value
    return out


def is_secret(name: str) -> bool:
    """Whether a variable's name says that it is a credential."""
    return any(SECRET_WORDS.fullmatch(word) for word in re.split(r"[^a-z0-9]+", name.lower()))
