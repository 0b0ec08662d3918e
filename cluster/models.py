"""The models that Herd knows by name, and how a job's `model` becomes files with digests.

A job may name a profile, a hub id, or a path (local or `s3://`). Figures are from the model cards and configs; see
docs/models.md for sources.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cluster.architecture import Architecture
from cluster.families import from_folder
from cluster.profiles import PROFILES, find_profile
from pipeline.config import EngineConfig, RunConfig
from pipeline.config_errors import nearest
from pipeline.errors import ConfigError
from pipeline.model import ModelRef, inspect_local
from pipeline.storage import Store


def with_profile(config: RunConfig) -> RunConfig:
    """The job with its model's profile filled in below its own engine settings.

    Raises:
        ConfigError: the model is known and cannot be run.
    """
    profile = find_profile(config.model) if config.model and config.engine.kind == "vllm" else None
    if profile is None:
        return config
    if profile.refused:
        raise ConfigError(profile.refused, where=f"model: {config.model}")
    if config.engine.auto:
        return config  # chooses for itself, see `cluster.choose`
    own = config.engine.model_dump(exclude_unset=True)
    return config.model_copy(update={"engine": EngineConfig.model_validate({**profile.engine, **own})})


def architecture_of(config: RunConfig, folder: Path | None) -> tuple[Architecture | None, str]:
    """The job's model's architecture; or None, and why."""
    if config.engine.kind == "echo":
        return None, "the echo engine has no model"
    profile = find_profile(str(config.model))
    try:
        if folder is not None and (folder / "config.json").is_file():
            return from_folder(folder), ""
    except ConfigError as e:
        return None, e.what
    known = profile.architecture if profile else None
    return known, "" if known else "the model's config.json is not at hand"


def resolve_model(config: RunConfig) -> ModelRef:
    """The job's model with its digests, without loading it.

    Local folders and models in the hub's local cache are digested by content. An `s3://` folder is digested by its
    listing (names, sizes, ETags), so that no weights pass through the machine that starts the run.

    Raises:
        ConfigError: the model is refused, not found, or its files are not all there.
        StorageError: an `s3://` model is out of reach.
    """
    if config.engine.kind == "echo":
        return ModelRef(config.model or "echo", "echo")
    name = str(config.model)
    profile = find_profile(name)
    licence = profile.licence if profile else None
    if name.startswith("s3://"):
        return _in_store(name, config, licence)
    if Path(name).expanduser().is_dir():
        return inspect_local(name, Path(name).expanduser(), licence or _licence_of(Path(name).expanduser()))
    if profile is None and ("/" not in name or name.startswith((".", "/", "~"))):
        raise ConfigError(
            f"There is no model `{name}`: neither a profile nor a folder.{nearest(name, PROFILES)}",
            where="model",
            todo=f"Profiles: {', '.join(PROFILES)}; else a hub id (owner/name) or a path.",
        )
    hub_id = profile.hub_id if profile and profile.hub_id else name
    return _from_hub(name, hub_id, licence)


def _licence_of(folder: Path) -> str | None:
    """A Llama 4 of any size carries Meta's licence if it says so itself; unknown otherwise."""
    for file in ("LICENSE", "LICENSE.txt"):
        if (folder / file).is_file():
            return (folder / file).read_text(errors="replace").strip().partition("\n")[0][:100] or None
    return None


def _in_store(name: str, config: RunConfig, licence: str | None) -> ModelRef:
    files = Store(name, config.input.storage).list_folder(name)
    names = {f.uri.rsplit("/", 1)[-1] for f in files}
    for needed in ("config.json", ".safetensors", "tokenizer"):
        if not any(needed in n for n in names):
            raise ConfigError(f"The model's folder holds no {needed} file", where=name, todo="Copy the model again.")

    def digest(part: str) -> str:
        lines = [f"{f.uri.rsplit('/', 1)[-1]} {f.size} {f.etag}\n" for f in files if part in f.uri.rsplit("/", 1)[-1]]
        return "etags:" + hashlib.sha256("".join(lines).encode()).hexdigest()

    return ModelRef(name, name, digest(".safetensors"), digest("token"), digest("template"), licence)


def _from_hub(name: str, hub_id: str, licence: str | None) -> ModelRef:
    from huggingface_hub import model_info, snapshot_download

    try:
        cached = Path(snapshot_download(hub_id, local_files_only=True))
    except Exception:  # any reason for not being in the cache leads to asking the hub
        cached = None
    if cached is not None:
        return inspect_local(name, cached, licence)
    try:
        info = model_info(hub_id, files_metadata=True)
    except Exception as e:  # the hub library raises its own, requests' and httpx's errors
        raise ConfigError(
            f"Model {hub_id} is neither in the local cache nor to be had from the hub: {str(e).splitlines()[0]}",
            where=f"model: {name}",
            todo="Download it first, or give a path. Gated models need HF_TOKEN.",
        ) from None
    listed = [(s.rfilename, s.size, (s.lfs or {}).get("sha256") or s.blob_id) for s in info.siblings or []]
    weights = [entry for entry in listed if entry[0].endswith(".safetensors")]
    tokenizer = [entry for entry in listed if "token" in entry[0]]

    def digest(entries: list[tuple[str, Any, Any]]) -> str:
        return "hub:" + hashlib.sha256(json.dumps(sorted(entries)).encode()).hexdigest()

    return ModelRef(name, hub_id, digest(weights), digest(tokenizer), f"hub:{info.sha}", licence)


def hub_bytes(hub_id: str) -> int:
    """Bytes of a hub model's weights; 0 where the hub cannot be asked."""
    from huggingface_hub import model_info

    try:
        files = model_info(hub_id, files_metadata=True).siblings or []
    except Exception:  # the hub library raises its own, requests' and httpx's errors
        return 0
    return sum(f.size or 0 for f in files if f.rfilename.endswith(".safetensors"))
