"""An object store in memory, and workers that run one at a time and stop before each of their requests."""

import enum
import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from botocore.exceptions import ClientError

from pipeline.config import StorageConfig
from pipeline.errors import HerdError
from pipeline.storage import Store
from pipeline.storage_faults import storage_errors


class Order(enum.Enum):
    """What becomes of a worker's next request."""

    GO = "go"
    LOSE_REPLY = "lose reply"
    """The request takes effect, and the connection breaks before the answer."""
    DIE = "die"
    """The worker ends for good, and the request is never made."""


class KilledError(BaseException):
    """Ends a worker's thread as the loss of its node would."""


_here = threading.local()


class Worker:
    """Something that makes requests, on a thread that runs only inside `step`: from one request to the next."""

    def __init__(self, name: str, act: Callable[[], Any]) -> None:
        self.name, self._act = name, act
        self.is_done = self._has_begun = False
        self.result: Any = None
        self.error: HerdError | None = None
        self._fault: BaseException | None = None
        self._order = Order.GO
        self._go, self._stopped = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._stopped.acquire()

    def step(self, order: Order = Order.GO) -> None:
        """Makes the request that the worker stopped at, if any, and goes on to the next one or to the end."""
        assert not self.is_done
        self._order = order
        if self._has_begun:
            self._go.release()
        else:
            self._has_begun = True
            threading.Thread(target=self._run, name=self.name, daemon=True).start()
        self._stopped.acquire()
        if self._fault is not None:
            raise self._fault

    def run(self) -> None:
        while not self.is_done:
            self.step()

    def kill(self) -> None:
        self.is_done = self.is_done or not self._has_begun
        while not self.is_done:
            self.step(Order.DIE)

    def _run(self) -> None:
        _here.worker = self
        try:
            self.result = self._act()
        except KilledError:
            pass
        except HerdError as e:
            self.error = e
        except BaseException as e:  # a fault of the code under test, raised where the worker is stepped
            self._fault = e
        finally:
            self.is_done = True
            self._stopped.release()

    def pause(self) -> Order:
        self._stopped.release()
        self._go.acquire()
        if self._order is Order.DIE:
            raise KilledError
        return self._order


class MemoryStore(Store):
    """A store as S3 is one, with ETags that are digests of contents. Each request of a `Worker` waits for its turn; what
    other threads ask is done at once. Without `keeps_conditions` it takes a conditional put and ignores the condition."""

    def __init__(self, uri: str, *, keeps_conditions: bool = True) -> None:
        super().__init__(uri, StorageConfig(), retry_s=0)
        self.keeps_conditions = keeps_conditions
        self.objects: dict[str, bytes] = {}
        self.log: list[str] = []
        """Requests that changed something or tried to, in order."""

    def path(self, uri: str) -> str:
        return uri.removeprefix("s3://")

    def call(self, uri: str, act: Callable[[], Any]) -> Any:
        with storage_errors(uri):
            while True:
                try:
                    return act()
                except ConnectionResetError:
                    continue  # as `retrying` does, without its pauses

    def read_many(self, uris: Sequence[str]) -> list[bytes]:
        return [self.read(uri) for uri in uris]

    def open(self, uri: str, *, block_size: int = 2**20) -> Any:
        return io.BytesIO(self.read(uri))

    def _do(self, name: str, *args: Any, **options: Any) -> Any:
        worker: Worker | None = getattr(_here, "worker", None)
        order = worker.pause() if worker else Order.GO
        said = self._answer(name, *args, **options)
        if name in ("pipe_file", "rm_file"):
            self.log.append(f"{worker.name if worker else 'test'}: {name} {args[0].rpartition('/out/')[2]}")
        if order is Order.LOSE_REPLY:
            raise ConnectionResetError
        return said

    def _answer(self, name: str, path: str, data: bytes = b"", **options: Any) -> Any:
        match name:
            case "info":
                return self._detail(path)
            case "exists":
                return path in self.objects or any(self._below(path))
            case "cat_file":
                self._detail(path)
                return self.objects[path]
            case "ls":
                names = [p for p in self._below(path) if "/" not in p[len(path) + 1 :]]
                if not names:
                    raise FileNotFoundError(path)
                return [self._detail(name) for name in names]
            case "pipe_file":
                self._refuse(path, options)
                self.objects[path] = data
                return {"ETag": f'"{_etag(data)}"'}
            case "rm_file":
                return self.objects.pop(path, None)
        raise NotImplementedError(name)

    def _refuse(self, path: str, options: dict[str, Any]) -> None:
        if not self.keeps_conditions:
            return
        if options.get("mode") == "create" and path in self.objects:
            raise FileExistsError(path)
        if (expected := options.get("IfMatch")) and self._detail(path)["ETag"].strip('"') != expected:
            raise ClientError({"Error": {"Code": "PreconditionFailed"}}, "PutObject")

    def _detail(self, path: str) -> dict[str, Any]:
        if path not in self.objects:
            raise FileNotFoundError(path)
        data = self.objects[path]
        return {"name": path, "type": "file", "size": len(data), "ETag": f'"{_etag(data)}"'}

    def _below(self, folder: str) -> Iterator[str]:
        return (path for path in sorted(self.objects) if path.startswith(f"{folder}/"))


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
