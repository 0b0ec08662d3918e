"""Rendering beside the engine: processes that make finished engine inputs of rows, so that the stepping thread only steps.

Templates, images, chat templates, tokens and image preprocessing are Python for the most part; on a thread of the engine's
own process they would take the interpreter from the stepping thread at every turn. The processes are forks of the
engine's, made when it has imported its libraries and nothing else, and they end with it. Each takes chunks of rows in
order: a few threads render (they may wait for images), one thread prepares.
"""

import contextlib
import copyreg
import io
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.engine.base import Preparer
from pipeline.errors import RowError, Stage
from pipeline.host.journal import Journal, Phase
from pipeline.host.memo import Known
from pipeline.ipc import from_ipc, to_ipc
from pipeline.render.rows import Renderer
from pipeline.request import Failure, Prepared, Request

RECENT = 256
"""Prepared requests that a process keeps at hand, for rows that want the same."""

FAILED = -1
"""In place of a chunk's number: the process is about to end, and why."""

Given = TypeVar("Given")
Made = TypeVar("Made")
Recall = Callable[[str], Known | None]


class Ready(NamedTuple):
    """A row that is ready to be asked. `key` is its request's, or None where identical rows are asked each by itself."""

    prepared: Prepared
    sampling_sha256: str
    key: str | None


class Recalled(NamedTuple):
    """A row whose answer an earlier run has been given."""

    known: Known
    sampling_sha256: str


Rendered = Ready | Recalled | Failure


def default_processes(config: RunConfig, cores: int, engines_per_node: int) -> int:
    """Rendering processes of an engine, where the job does not say: one on a CPU, whose cores the engine needs itself, and
    on an accelerator a quarter of its share of the node's cores, up to four."""
    if config.render.processes is not None:
        return config.render.processes
    return 1 if config.pool.accelerator is None else max(1, min(4, cores // (4 * engines_per_node)))


def default_concurrency(columns: Columns, cores: int) -> int:
    """Rendering threads of an engine, where the job does not say; see `RenderConfig.concurrency`."""
    return 16 if columns.may_fetch else max(1, min(8, cores // 2))


def guarded(act: Callable[[Given], Made], given: Given) -> Made | Failure:
    """What `act` makes of one row, or how it failed: one odd row must not end the run, whatever it made our code do."""
    try:
        return act(given)
    except RowError as e:
        return Failure.of(e)
    except Exception as e:
        return Failure.of(RowError(Stage.RENDER, "unexpected", f"{type(e).__name__}: {e}"))


def as_rows(table: pa.Table, num_rows: int) -> list[dict[str, Any]]:
    """A table's rows. One without columns has none to list, and a prompt may well use no column at all."""
    return table.to_pylist() if table.num_columns else [{}] * num_rows


class _Rendering:
    """The work of one rendering process."""

    def __init__(
        self,
        connection: Connection,
        config: RunConfig,
        threads: int,
        preparer: Preparer,
        journal: Journal,
        recall: Recall,
    ) -> None:
        self._connection, self._preparer, self._journal, self._recall = connection, preparer, journal, recall
        self._renderer = Renderer(config)
        self._shares = config.cache.in_run or config.cache.uri is not None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="herd-render")
        self._chunks: queue.SimpleQueue[tuple[int, int, Sequence[int], Future[tuple[list[Any], float]]]]
        self._chunks = queue.SimpleQueue()
        self._recent: OrderedDict[str, Prepared] = OrderedDict()

    def run(self) -> None:
        """Takes chunks until the engine's process is gone."""
        threading.Thread(target=self._receive, name="herd-receive", daemon=True).start()
        while True:
            number, slot, indices, future = self._chunks.get()
            requests, render_s = future.result()
            began, image_s = time.perf_counter(), self._renderer.image_s
            rows = [self._prepare(slot, index, request) for index, request in zip(indices, requests, strict=True)]
            spent = {"render_s": render_s, "prepare_s": time.perf_counter() - began, "image_s": image_s}
            self._connection.send_bytes(dumps((number, rows, spent)))

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, slot, indices, data = self._connection.recv()
                self._chunks.put((number, slot, indices, self._pool.submit(self._render, slot, indices, data)))
        os._exit(0)

    def _render(self, slot: int, indices: Sequence[int], data: bytes) -> tuple[list[Request | Failure], float]:
        began = time.perf_counter()
        rows = as_rows(from_ipc(data), len(indices))
        out = []
        for index, row in zip(indices, rows, strict=True):
            self._journal.mark(slot, index, Phase.RENDER)
            out.append(guarded(self._renderer.render, row))
            self._journal.mark(slot, index, Phase.RENDERED)
        return out, time.perf_counter() - began

    def _prepare(self, slot: int, index: int, request: Request | Failure) -> Rendered:
        if isinstance(request, Failure):
            return request
        key = request.key if self._shares and request.sampling.is_repeatable else None
        if key is not None and (known := self._recall(key)) is not None:
            return Recalled(known, request.sampling.sha256)
        if key is not None and (recent := self._recent.get(key)) is not None:
            return Ready(recent, request.sampling.sha256, key)
        self._journal.mark(slot, index, Phase.PREPARE)
        prepared = guarded(self._preparer.prepare, request)
        self._journal.mark(slot, index, Phase.PREPARED)
        if isinstance(prepared, Failure):
            return prepared
        if key is not None:
            self._recent[key] = prepared
            if len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return Ready(prepared, request.sampling.sha256, key)


def _flat(tensor: Any) -> Any:
    """A tensor as its bytes: many times faster than torch's own way through an archive."""
    import torch

    solid = tensor.detach().contiguous()
    data = (solid.view(-1) if solid.dim() else solid.reshape(1)).view(torch.uint8)
    return _tensor, (data.numpy().tobytes(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def _tensor(data: bytes, dtype: str, shape: tuple[int, ...]) -> Any:
    import torch

    kind = getattr(torch, dtype)
    return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape) if data else torch.empty(shape, dtype=kind)


def dumps(value: Any) -> bytes:
    """A message between the engine's process and its forks."""
    sink = io.BytesIO()
    pickler = pickle.Pickler(sink, protocol=5)
    if (torch := sys.modules.get("torch")) is not None:
        pickler.dispatch_table = {**copyreg.dispatch_table, torch.Tensor: _flat}
    pickler.dump(value)
    return sink.getvalue()


class Renderers:
    """The engine's side of its rendering processes."""

    def __init__(self, children: Sequence[tuple[int, Connection]]) -> None:
        """`children` are process ids and connections, as `fork_renderers` makes them."""
        self._connections = [connection for _, connection in children]
        self._pids = [pid for pid, _ in children]
        self._outboxes: list[queue.SimpleQueue[bytes]] = [queue.SimpleQueue() for _ in children]
        self._waiting: dict[int, Future[list[Rendered]]] = {}
        self._numbers = 0
        self._spent = {"render_s": 0.0, "prepare_s": 0.0}
        self._image_s = [0.0] * len(self._pids)
        self._on_death: Callable[[BaseException], None] = lambda death: None

    def start(self, on_death: Callable[[BaseException], None]) -> None:
        """Begins to listen. `on_death` is told when a process ends, and then nothing more comes from here."""
        self._on_death = on_death
        for number in range(len(self._pids)):
            for act in (self._receive, self._send):
                threading.Thread(target=act, args=(number,), name=f"herd-{act.__name__[1:]}", daemon=True).start()

    def submit(self, slot: int, indices: Sequence[int], rows: pa.Table) -> "Future[list[Rendered]]":
        """Has rows rendered and prepared. Called from one thread; processes take turns."""
        future: Future[list[Rendered]] = Future()
        self._numbers += 1
        self._waiting[self._numbers] = future
        self._outboxes[self._numbers % len(self._pids)].put(
            pickle.dumps((self._numbers, slot, indices, to_ipc(rows)), protocol=5)
        )
        return future

    def figures(self) -> dict[str, float]:
        """Seconds spent rendering (images included) and preparing, and those of them fetching and decoding images."""
        return {**self._spent, "image_s": sum(self._image_s)}

    def _send(self, number: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connections[number].send_bytes(self._outboxes[number].get())

    def _receive(self, number: int) -> None:
        try:
            while True:
                chunk, rows, spent = self._connections[number].recv()
                if chunk == FAILED:
                    return self._on_death(RuntimeError(f"a rendering process failed: {rows}"))
                self._spent["render_s"] += spent["render_s"]
                self._spent["prepare_s"] += spent["prepare_s"]
                self._image_s[number] = spent["image_s"]
                self._waiting.pop(chunk).set_result(rows)
        except (EOFError, OSError):
            _, status = os.waitpid(self._pids[number], 0)
            code = os.waitstatus_to_exitcode(status)
            how = signal.Signals(-code).name if code < 0 else f"status {code}"
            self._on_death(RuntimeError(f"a rendering process ended with {how}"))


def fork_renderers(
    count: int,
    threads: int,
    config: RunConfig,
    journal: Journal,
    make: Callable[[], Preparer],
    recall: Callable[[], Recall],
    begin: Callable[[], None],
) -> Renderers:
    """Forks rendering processes off this one, which must have no thread of its own at work. In each, `begin` is called
    first, then `recall` makes what finds known answers, and `make` what prepares requests."""
    children: list[tuple[int, Connection]] = []
    for _ in range(count):
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for connection in (ours, *(connection for _, connection in children)):
                    connection.close()
                begin()
                _Rendering(theirs, config, threads, make(), journal, recall()).run()
                status = 0
            except Exception as e:
                theirs.send((FAILED, f"{type(e).__name__}: {e}", {}))
            finally:
                os._exit(status)
        theirs.close()
        children.append((pid, ours))
    return Renderers(children)
