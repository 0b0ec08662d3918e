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
from pipeline.storage import Store

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
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

    def wrong(what: str) -> ConfigError:
        return ConfigError(what, where=str(folder), todo="Download or copy the model again.")

    if not folder.is_dir():
        raise ConfigError("The model's folder does not exist", where=str(folder))
    if not (folder / "config.json").is_file():
        raise wrong("The model has no config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise wrong(f"{index.name} is not an index of weight files") from None
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise wrong(f"{len(missing)} of the model's {len(names)} weight files are missing, first {missing[0]}")
    else:
        names = sorted(p.name for p in folder.glob("*.safetensors"))
        if not names:
            raise wrong("The model has no .safetensors weights (pickled weights are not loaded)")
    for name in names:
        expected, found = _expected_bytes(folder / name), (folder / name).stat().st_size
        if expected != found:
            raise wrong(f"Weight file {name} has {found:,} bytes and its header says {expected:,}")
    if not any((folder / n).is_file() for n in TOKENIZER_FILES[:3]):
        raise wrong("The model has no tokenizer files")
    if read_template(folder) is None:
        raise wrong("The model has no chat template (chat_template.jinja, or in tokenizer_config.json)")


def _expected_bytes(path: Path) -> int:
    """A safetensors file's size by its header: 8 bytes of header length, the header, and the last tensor's end."""
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length == 0 or path.stat().st_size < 8 + length:
            return 8 + max(length, 1)
        header = json.loads(f.read(length))
    ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def read_template(folder: Path) -> str | None:
    """The text of the model's chat template, wherever it stands; None if there is none."""
    for name in TEMPLATE_FILES:
        if (folder / name).is_file():
            return (folder / name).read_text()
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    return None if template is None else template if isinstance(template, str) else json.dumps(template)


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
    files = [f for f in store.list_folder(location) if f.size > 0]
    if not files:
        raise ConfigError("There is no model at this address", where=location)
    key = hashlib.sha256(json.dumps([(f.uri, f.size, f.etag) for f in files]).encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in files:
            target = folder / file.uri.rsplit("/", 1)[-1]
            if not target.is_file() or target.stat().st_size != file.size:
                partial = target.with_suffix(target.suffix + ".partial")
                store.fs.get_file(store.path(file.uri), str(partial))
                partial.replace(target)
    return str(folder)
