"""Where bytes come from and go to: fsspec for local paths and `s3://`, with one way to list, read and put.

Owns the translation of storage faults into sentences, ETags for stores that have none, and the atomic put. Everything
else in Herd handles a `Store` and URIs, never a filesystem's own exceptions.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError

from pipeline.config import StorageConfig
from pipeline.errors import StorageError

CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One stored object. `etag` is the store's own, or for local files size and modification time."""

    uri: str
    size: int
    etag: str


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Raises `StorageError` with the URI and a way out for whatever the filesystem raises inside."""
    try:
        yield
    except FileNotFoundError as e:
        no_bucket = "bucket does not exist" in str(e).lower() or "NoSuchBucket" in str(e)
        what = "The bucket does not exist" if no_bucket else "There is nothing at this address"
        raise StorageError(what, where=uri, todo="Check the spelling, the endpoint and the region.") from e
    except PermissionError as e:
        raise StorageError(f"The store refuses access: {_short(e)}", where=uri, todo=_permission_advice(uri)) from e
    except (NoCredentialsError, PartialCredentialsError) as e:
        raise StorageError(
            "No credentials were found for the store",
            where=uri,
            todo="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose AWS_PROFILE, or say "
            "`storage: {anonymous: true}` for a public bucket.",
        ) from e
    except (OSError, BotoCoreError) as e:
        raise StorageError(
            f"The store failed: {_short(e)}", where=uri, todo="Check the endpoint and the network, then run again."
        ) from e


def _permission_advice(uri: str) -> str:
    if uri.startswith("s3://"):
        return "Check that the credentials are right and may read (inputs) or write (outputs) here."
    return "Check the permissions of the file and its folders."


def _short(e: BaseException) -> str:
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 200 else text[:200] + "..."


@lru_cache(maxsize=16)
def _filesystem(protocol: str, storage: StorageConfig) -> Any:
    if protocol == "s3":
        return fsspec.filesystem(
            "s3",
            anon=storage.anonymous,
            endpoint_url=storage.endpoint_url,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 4}},
        )
    return fsspec.filesystem(protocol)


def _is_hidden(name: str, depth: int) -> bool:
    """Whether the file, or a folder on its way below the first `depth` parts (0: the file alone), begins with `_` or
    `.`: markers, temporary folders, checkpoints."""
    parts = name.split("/")
    return any(part.startswith(("_", ".")) for part in (parts[depth:] if depth else parts[-1:]))


class Store:
    """The filesystem behind a URI. Paths in and out are URIs (`s3://bucket/key`, or plain local paths)."""

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        self.protocol = uri.split("://", 1)[0] if "://" in uri else "file"
        if self.protocol not in ("file", "local", "s3"):
            raise StorageError(
                f"`{self.protocol}://` is not a storage known here", where=uri, todo="Use a local path or s3://."
            )
        self.fs = _filesystem(self.protocol, storage)

    @property
    def is_local(self) -> bool:
        return self.protocol in ("file", "local")

    def path(self, uri: str) -> str:
        """The URI as the filesystem's own path."""
        return str(self.fs._strip_protocol(uri))

    def uri(self, path: str) -> str:
        return path if self.is_local else f"{self.protocol}://{path}"

    def _info(self, detail: dict[str, Any]) -> FileInfo:
        if self.is_local:
            etag = f"{detail['size']:x}-{os.stat(detail['name']).st_mtime_ns:x}"
        else:
            etag = str(detail.get("ETag") or detail.get("etag") or "").strip('"')
        return FileInfo(self.uri(detail["name"]), int(detail["size"]), etag)

    def stat(self, uri: str) -> FileInfo:
        with storage_errors(uri):
            return self._info(self.fs.info(self.path(uri)))

    def exists(self, uri: str) -> bool:
        with storage_errors(uri):
            return bool(self.fs.exists(self.path(uri)))

    def list_folder(self, uri: str) -> list[FileInfo]:
        """Files directly in a folder, by name; an empty list where the folder does not exist."""
        with storage_errors(uri):
            try:
                entries = self.fs.ls(self.path(uri), detail=True, refresh=True)
            except FileNotFoundError:
                return []
            return sorted((self._info(e) for e in entries if e["type"] == "file"), key=lambda f: f.uri)

    def first_below(self, uri: str) -> str | None:
        """Some file below a folder, however deep; None where there is none."""
        with storage_errors(uri):
            for folder, _, names in self.fs.walk(self.path(uri)):
                for name in sorted(names):
                    return self.uri(f"{folder.rstrip('/')}/{name}")
        return None

    def find(self, uri: str) -> list[FileInfo]:
        """Parquet files under a file URI, a glob or a folder, by name. Names that begin with `_` or `.` are left out.

        Raises:
            StorageError: nothing is there, or it may not be read.
        """
        path = self.path(uri)
        with storage_errors(uri):
            is_pattern = any(c in path for c in "*?[") and not self.fs.isfile(path)
            if is_pattern:
                found = list(self.fs.glob(path, detail=True).values())
            else:
                info = self.fs.info(path)
                if info["type"] == "file":
                    return [self._info(info)]
                found = [d for n, d in self.fs.find(path, detail=True).items() if n.endswith(".parquet")]
        depth = 0 if is_pattern else len(path.rstrip("/").split("/"))
        files = [d for d in found if d["type"] == "file" and not _is_hidden(d["name"], depth)]
        if not files:
            what = "No file matches this pattern" if is_pattern else "This folder holds no .parquet file"
            raise StorageError(what, where=uri, todo="Check the spelling, or list it with your storage's own tool.")
        return sorted((self._info(d) for d in files), key=lambda f: f.uri)

    def read(self, uri: str) -> bytes:
        with storage_errors(uri):
            return bytes(self.fs.cat_file(self.path(uri)))

    def read_many(self, uris: Sequence[str]) -> list[bytes]:
        """The bytes of each object, in order, fetched concurrently."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return list(pool.map(self.read, uris))

    def put(self, uri: str, data: bytes) -> FileInfo:
        """Writes an object whole or not at all, over whatever stood there."""
        path = self.path(uri)
        with storage_errors(uri):
            if not self.is_local:
                self.fs.pipe_file(path, data)
                return self._info(self.fs.info(path))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            partial = f"{path}.{uuid.uuid4().hex}.partial"
            try:
                with open(partial, "wb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
                os.replace(partial, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(partial)
                raise
            return self._info(self.fs.info(path))

    def remove(self, uri: str) -> None:
        """Removes an object; one that is not there is no error."""
        with storage_errors(uri), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(uri))

    def open(self, uri: str, *, block_size: int = 2**20) -> Any:
        """A seekable binary file object for reading."""
        path = self.path(uri)
        with storage_errors(uri):
            if self.is_local:
                return self.fs.open(path, "rb")
            return self.fs.open(path, "rb", block_size=block_size, cache_type="readahead")
