"""A model's files: are they all there, what are they exactly, and a local copy for the node that will load them.

Digests are over content. Hashing hundreds of gigabytes takes minutes, so each file's digest is cached on this machine
under its path, size and modification time.
"""

import fcntl
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError
from pipeline.model_files import TOKENIZER_FILES, Read, check_model, template_of
from pipeline.storage import FileInfo, Store

CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a run knows it. Digests are `sha256:...` over names, sizes and contents; None where unknown."""

    name: str
    """As the job names it."""
    location: str
    """A local folder, an `s3://` folder, or a hub id."""
    weights_digest: str | None = None
    tokenizer_digest: str | None = None
    template_digest: str | None = None
    licence: str | None = None

    @property
    def digests(self) -> dict[str, str | None]:
        return {"weights": self.weights_digest, "tokenizer": self.tokenizer_digest, "template": self.template_digest}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cache_folder() -> Path:
    """`HERD_CACHE`, or `herd` in the user's cache folder."""
    return Path(os.environ.get("HERD_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "herd")).expanduser()


def check_files(folder: Path) -> None:
    """Raises `ConfigError` naming the first file of a local model that is missing or cut short."""
    if not folder.is_dir():
        raise ConfigError("The model's folder does not exist", where=str(folder))
    check_model(_sizes(folder), _reader(folder), str(folder))


def read_template(folder: Path) -> str | None:
    """The text of the model's chat template, wherever it stands; None if there is none."""
    return template_of(_sizes(folder), _reader(folder))


def _sizes(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in folder.iterdir() if p.is_file()}


def _reader(folder: Path) -> Read:
    def read(name: str, start: int, end: int | None) -> bytes:
        with (folder / name).open("rb") as f:
            f.seek(start)
            return f.read() if end is None else f.read(end - start)

    return read


def inspect_local(name: str, folder: Path, licence: str | None = None) -> ModelRef:
    """Checks a local model and digests it.

    Raises:
        ConfigError: a file is missing or cut short.
    """
    check_files(folder)
    tokenizer = [folder / n for n in TOKENIZER_FILES if (folder / n).is_file()]
    template = read_template(folder)
    return ModelRef(
        name,
        str(folder.resolve()),
        weights_digest=digest_files(sorted(folder.glob("*.safetensors"))),
        tokenizer_digest=digest_files(tokenizer),
        template_digest="sha256:" + hashlib.sha256((template or "").encode()).hexdigest(),
        licence=licence,
    )


def digest_files(files: list[Path]) -> str:
    """`sha256:` over `name size sha256` lines of the files, in name order; files are hashed side by side."""
    cache_path = cache_folder() / "digests.json"
    try:
        found_cache = json.loads(cache_path.read_text())
    except (OSError, ValueError):
        found_cache = None
    cache: dict[str, str] = found_cache if isinstance(found_cache, dict) else {}

    def one(path: Path) -> tuple[str, str]:
        stat = path.resolve().stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        return key, cache.get(key) or _sha256_of(path)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, files))
    if new := {k: v for k, v in found if k not in cache}:
        try:
            cache_path.parent.mkdir(parents=True, exist_ok=True)
            partial = cache_path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(cache | new))
            partial.replace(cache_path)
        except OSError:
            pass  # the cache only saves time
    lines = [f"{p.name} {p.stat().st_size} {sha}\n" for p, (_, sha) in zip(files, found, strict=True)]
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def localise(location: str, storage: StorageConfig) -> str:
    """A path that vLLM can load on this node: the location itself, or a local copy of an `s3://` folder.

    The copy lies in the cache folder under the listing's digest; engines that share a node take turns, and all but the
    first find it there.
    """
    if not location.startswith("s3://"):
        return location
    store = Store(location, storage)
    files = model_objects(location, store)
    folder = _copy_folder(files)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in files:
            target = folder / file.name
            if not target.is_file() or target.stat().st_size != file.size:
                partial = target.with_suffix(target.suffix + ".partial")
                store.fs.get_file(store.path(file.uri), str(partial))
                partial.replace(target)
    return str(folder)


def model_objects(location: str, store: Store) -> list[FileInfo]:
    """The files of a model in an object store.

    Raises:
        ConfigError: there are none.
    """
    files = [f for f in store.list_folder(location) if f.size > 0]
    if not files:
        raise ConfigError("There is no model at this address", where=location)
    return files


def check_objects(location: str, store: Store) -> None:
    """Raises `ConfigError` naming the first file of a model in an object store that is missing or cut short. Of the
    weights only headers are read."""
    files = {f.name: f for f in model_objects(location, store)}

    def read(name: str, start: int, end: int | None) -> bytes:
        return store.read(files[name].uri, start, end)

    check_model({name: f.size for name, f in files.items()}, read, location)


def missing_bytes(location: str, store: Store) -> int:
    """Bytes of a model in an object store of which this node has no copy yet."""
    files = model_objects(location, store)
    folder = _copy_folder(files)
    here = {f.name for f in files if (folder / f.name).is_file() and (folder / f.name).stat().st_size == f.size}
    return sum(f.size for f in files if f.name not in here)


def _copy_folder(files: list[FileInfo]) -> Path:
    key = hashlib.sha256(json.dumps([(f.uri, f.size, f.etag) for f in files]).encode()).hexdigest()[:16]
    return cache_folder() / "models" / key
