"""Where bytes come from and go to: fsspec for local paths and `s3://`, with one way to list, read and put.

Owns ETags for stores that have none, the atomic and the conditional put, and a time limit for each call. What goes wrong
on the way is sorted, tried again or put into words by `pipeline.storage_faults`. Everything else in Herd handles a
`Store` and URIs, never a filesystem's own exceptions.
"""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync

from pipeline.config import StorageConfig
from pipeline.errors import StorageError
from pipeline.storage_faults import BodyMismatchError, is_lost_upload, is_precondition, retrying, storage_errors

CONCURRENCY = 32
LOCK_S = 5.0
PART_BYTES = 50 * 2**20
"""Objects of twice this size and more are sent in parts; they too appear whole or not at all."""

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One stored object. `etag` is the store's own, or for local files size and modification time."""

    uri: str
    size: int
    etag: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.uri.rsplit("/", 1)[-1]


@lru_cache(maxsize=16)
def _filesystem(protocol: str, storage: StorageConfig) -> Any:
    if protocol == "s3":
        return fsspec.filesystem(
            "s3",
            anon=storage.anonymous,
            endpoint_url=storage.endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
            # retries are ours (see `Store.call`); a few here keep a hiccup from costing a whole call
            config_kwargs={
                "connect_timeout": min(10.0, storage.timeout_s),
                "read_timeout": min(60.0, storage.timeout_s),
                "retries": {"max_attempts": 2},
            },
        )
    return fsspec.filesystem(protocol)


def _is_hidden(name: str, depth: int) -> bool:
    """Whether the file, or a folder on its way below the first `depth` parts (0: the file alone), begins with `_` or
    `.`: markers, temporary folders, checkpoints."""
    parts = name.split("/")
    return any(part.startswith(("_", ".")) for part in (parts[depth:] if depth else parts[-1:]))


class Store:
    """The filesystem behind a URI. Paths in and out are URIs (`s3://bucket/key`, or plain local paths).

    Each call is tried again for `retry_s` seconds while its fault may pass, and ends as `StorageError`. A run that is
    under way passes `storage.retry_s`; before it a mistake should show at once.
    """

    def __init__(self, uri: str, storage: StorageConfig, *, retry_s: float = 3.0) -> None:
        self.protocol = uri.split("://", 1)[0] if "://" in uri else "file"
        if self.protocol not in ("file", "local", "s3"):
            raise StorageError(
                f"`{self.protocol}://` is not a storage known here", where=uri, todo="Use a local path or s3://."
            )
        self._storage, self._retry_s = storage, retry_s

    @property
    def fs(self) -> Any:
        return _filesystem(self.protocol, self._storage)

    @property
    def is_local(self) -> bool:
        return self.protocol in ("file", "local")

    def path(self, uri: str) -> str:
        """The URI as the filesystem's own path."""
        return str(self.fs._strip_protocol(uri))

    def uri(self, path: str) -> str:
        return path if self.is_local else f"{self.protocol}://{path}"

    def call(self, uri: str, act: Callable[[], Made]) -> Made:
        """What `act` gives, tried again while its fault may pass. `act` must be safe to repeat.

        Raises:
            StorageError: it failed for good, or for longer than `retry_s`.
        """
        with storage_errors(uri):
            return retrying(act, self._retry_s, _filesystem.cache_clear)

    def _do(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the filesystem; of a remote one with a limit on its time."""
        if self.is_local:
            return getattr(self.fs, name)(*args, **kwargs)
        return sync(self.fs.loop, getattr(self.fs, f"_{name}"), *args, timeout=self._storage.timeout_s, **kwargs)

    def _info(self, detail: dict[str, Any]) -> FileInfo:
        if self.is_local:
            etag = f"{detail['size']:x}-{os.stat(detail['name']).st_mtime_ns:x}"
        else:
            etag = str(detail.get("ETag") or detail.get("etag") or "").strip('"')
        return FileInfo(self.uri(detail["name"]), int(detail["size"]), etag)

    def stat(self, uri: str) -> FileInfo:
        return self.call(uri, lambda: self._info(self._do("info", self.path(uri))))

    def absolute(self, uri: str) -> str:
        """The address of a folder as any process may use it, without a slash at its end."""
        return self.uri(self.path(uri)).rstrip("/")

    def find_one(self, uri: str) -> FileInfo | None:
        """The object at this very address; None where there is none."""

        def look() -> FileInfo | None:
            try:
                detail = self._do("info", self.path(uri))
            except FileNotFoundError:
                return None
            return self._info(detail) if detail["type"] == "file" else None

        return self.call(uri, look)

    def exists(self, uri: str) -> bool:
        return bool(self.call(uri, lambda: self._do("exists", self.path(uri))))

    def list_folder(self, uri: str) -> list[FileInfo]:
        """Files directly in a folder, by name, hidden ones left out; an empty list where the folder does not exist."""

        def look() -> list[FileInfo]:
            path = self.path(uri)
            try:
                if self.is_local:
                    entries = self.fs.ls(path, detail=True)
                else:
                    entries = self._do("ls", path, detail=True, refresh=True)
            except FileNotFoundError:
                return []
            files = [e for e in entries if e["type"] == "file" and not _is_hidden_file(e["name"])]
            return sorted((self._info(e) for e in files), key=lambda f: f.uri)

        return self.call(uri, look)

    def first_below(self, uri: str, ignored: Callable[[str], bool] = lambda name: False) -> str | None:
        """Some file below a folder, however deep, whose name is not `ignored`; None where there is none."""

        def look() -> str | None:
            with contextlib.suppress(FileNotFoundError):
                for folder, _, names in self.fs.walk(self.path(uri), on_error="raise"):
                    for name in sorted(names):
                        if not ignored(name):
                            return self.uri(f"{folder.rstrip('/')}/{name}")
            return None

        return self.call(uri, look)

    def find(self, uri: str) -> list[FileInfo]:
        """Parquet files under a file URI, a glob or a folder, by name. Names that begin with `_` or `.` are left out.

        Raises:
            StorageError: nothing is there, or it may not be read.
        """
        return self.call(uri, lambda: self._find(uri))

    def _find(self, uri: str) -> list[FileInfo]:
        path = self.path(uri)
        is_pattern = any(c in path for c in "*?[") and not self.fs.isfile(path)
        if is_pattern:
            found = list(self._do("glob", path, detail=True).values())
        else:
            info = self._do("info", path)
            if info["type"] == "file":
                return [self._info(info)]
            found = [d for n, d in self._do("find", path, detail=True).items() if n.endswith(".parquet")]
        depth = 0 if is_pattern else len(path.rstrip("/").split("/"))
        files = [d for d in found if d["type"] == "file" and not _is_hidden(d["name"], depth)]
        if not files:
            what = "No file matches this pattern" if is_pattern else "This folder holds no .parquet file"
            raise StorageError(what, where=uri, todo="Check the spelling, or list it with your storage's own tool.")
        return sorted((self._info(d) for d in files), key=lambda f: f.uri)

    def read(self, uri: str, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes, or those from one offset to another."""
        return self.call(uri, lambda: bytes(self._do("cat_file", self.path(uri), start=start, end=end)))

    def read_many(self, uris: Sequence[str]) -> list[bytes]:
        """The bytes of each object, in order, fetched concurrently."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return list(pool.map(self.read, uris))

    def put(self, uri: str, data: bytes) -> FileInfo:
        """Writes an object whole or not at all, over whatever stood there."""

        def write() -> FileInfo:
            if self.is_local:
                info = self._put_local(uri, data)
                assert info is not None
                return info
            try:
                return self._put_remote(uri, data)
            except Exception as e:
                if is_lost_upload(e) and (info := self._if_same(uri, data)):
                    return info
                raise

        return self.call(uri, write)

    def put_if(self, uri: str, data: bytes, expected: FileInfo | None) -> FileInfo | None:
        """Writes an object whole or not at all, if what stands there now is `expected` (None: nothing); None if it is
        not. S3 decides this in the request itself where the store honours conditions; other stores are looked at just
        before. An object that already holds `data` counts as written: an answer may get lost where the request did not.
        """

        def write() -> FileInfo | None:
            if self.is_local:
                return self._put_local(uri, data, lambda: self._stands(uri, expected)) or self._if_same(uri, data)
            if not self._stands(uri, expected):
                return self._if_same(uri, data)
            try:
                if expected is None:
                    return self._put_remote(uri, data, mode="create")
                # S3 takes this condition with a single request only, not with an upload in parts
                condition = {} if len(data) >= 2 * PART_BYTES else {"IfMatch": expected.etag}
                return self._put_remote(uri, data, **condition)
            except Exception as e:
                is_gone = expected is not None and isinstance(e, FileNotFoundError)
                if is_gone or is_precondition(e) or is_lost_upload(e):
                    return self._if_same(uri, data)
                raise

        return self.call(uri, write)

    def _stands(self, uri: str, expected: FileInfo | None) -> bool:
        current = self.find_one(uri)
        return (current and current.etag) == (expected and expected.etag)

    def refuses_to_create(self, uri: str) -> bool:
        """Whether the store keeps the condition that an object be new, tried with an object at `uri`, which is removed."""

        def look() -> bool:
            self._put_remote(uri, b"1")
            try:
                self._put_remote(uri, b"2", mode="create")
            except Exception as e:
                if is_precondition(e):
                    return True
                raise
            return False

        try:
            return self.call(uri, look)
        finally:
            self.remove(uri)

    def _if_same(self, uri: str, data: bytes) -> FileInfo | None:
        info = self.find_one(uri)
        return info if info is not None and info.size == len(data) and self.read(uri) == data else None

    def _put_remote(self, uri: str, data: bytes, **options: Any) -> FileInfo:
        path = self.path(uri)
        reply = self._do("pipe_file", path, data, chunksize=PART_BYTES, **options)
        if reply and reply.get("ETag"):
            return FileInfo(self.uri(path), len(data), str(reply["ETag"]).strip('"'))
        info = self._info(self._do("info", path))
        if info.size != len(data):
            raise BodyMismatchError(f"{info.size:,} of {len(data):,} bytes arrived")
        return info

    def _put_local(self, uri: str, data: bytes, may: Callable[[], bool] = lambda: True) -> FileInfo | None:
        """Writes beside the file and then takes its place, if `may` says so; None if it does not."""
        path = self.path(uri)
        folder, name = os.path.split(path)
        os.makedirs(folder, exist_ok=True)
        partial = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.partial")
        try:
            with open(partial, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            with _alone_in(folder):
                if not may():
                    return None
                os.replace(partial, path)
                return self._info(self.fs.info(path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)

    def remove(self, uri: str) -> None:
        """Removes an object; one that is not there is no error."""

        def rid() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._do("rm_file", self.path(uri))

        self.call(uri, rid)

    def remove_folder(self, uri: str) -> None:
        """Removes a folder and all that is in it; one that is not there is no error."""

        def rid() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.fs.invalidate_cache()  # a listing that was kept would leave what is newer
                self._do("rm", self.path(uri), recursive=True)

        self.call(uri, rid)

    def sweep(self, uri: str) -> None:
        """Removes what interrupted puts left in a folder. Such files are hidden, and only local folders have any."""
        if self.is_local and os.path.isdir(self.path(uri)):
            for entry in os.scandir(self.path(uri)):
                if is_partial(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)

    def open(self, uri: str, *, block_size: int = 2**20) -> Any:
        """A seekable binary file object for reading."""
        path = self.path(uri)
        if self.is_local:
            return self.call(uri, lambda: self.fs.open(path, "rb"))
        return self.call(uri, lambda: self.fs.open(path, "rb", block_size=block_size, cache_type="readahead"))


def is_partial(name: str) -> bool:
    """Whether a file is what an interrupted put left in a local folder."""
    return name.startswith(".") and name.endswith(".partial")


def _is_hidden_file(path: str) -> bool:
    return path.rsplit("/", 1)[-1].startswith(".")


@contextlib.contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Keeps other writers of a local folder waiting, for some seconds at most: one that sleeps must not stop them all.
    Without effect on filesystems that know no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            except OSError:
                break
        yield
    finally:
        os.close(handle)
