"""The engine's process, forked by `pipeline.host.forkserver` and fed by `pipeline.host.host`.

At its end of a private pipe it first takes the environment to be in and an `EngineJob`, answers `placed` where it has to
take GPUs itself, then `ready` or `failed`, and then takes questions and hands back pieces. It ends with the pipe: an engine
without a host would hold a GPU for nobody.
"""

import gc
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from pipeline.cache import AnswerCache
from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.engine.base import Engine, Preparer
from pipeline.engine.echo import EchoEngine, EchoPreparer
from pipeline.errors import HerdError
from pipeline.fate import be_called, end_with
from pipeline.host.journal import Journal
from pipeline.host.rendering import Recall, Renderers, default_concurrency, default_processes, fork_renderers
from pipeline.host.worker import Worker
from pipeline.ipc import from_ipc, to_ipc
from pipeline.model import ModelRef, localise
from pipeline.placement import Gang


def import_path() -> dict[str, str]:
    """The variable by which a new process of Python finds what this one finds."""
    return {"PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)}


@dataclass(frozen=True)
class EngineJob:
    """All that an engine's process needs to know of the run."""

    config: RunConfig
    columns: Columns
    model: ModelRef
    run_id: str = ""
    engines_per_node: int = 1
    gang: Gang | None = None
    """GPUs that the process takes itself, beyond the actor's."""
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of the environment in which the run was started, what concerns engines; a node's own come first."""
    devices: tuple[str, ...] = ()
    """The actor's GPUs, as Ray numbers them on its node."""
    node: str = ""
    address: str = ""
    """The actor's node, and the cluster it is in."""
    fork_server: str | None = None
    """Of this machine; None: the host opens one. See `pipeline.host.forkserver`."""
    omp_num_threads: str | None = None
    """`OMP_NUM_THREADS` as the user set it. Ray sets it to the CPUs that an actor reserves, which says nothing of an engine."""

    def environment(self) -> dict[str, str]:
        """The environment of the engine's process. Threads for an engine on the CPU are its share of the node's cores, less
        one for image preprocessing where there are images: threads that step together wait for the one that is held up.
        On an accelerator they are vLLM's to choose.

        The GPUs are said in any case: on clusters with `RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES` Ray does not, and each
        engine would take the node's first ones."""
        out = {**self.variables, **os.environ, **import_path()}
        if self.devices:
            out["CUDA_VISIBLE_DEVICES"] = ",".join(self.devices)
        out.pop("OMP_NUM_THREADS", None)
        if self.omp_num_threads is not None:
            out["OMP_NUM_THREADS"] = self.omp_num_threads
        elif self.config.pool.accelerator is None:
            sharing = self.engines_per_node * self.config.engine.num_gpus
            has_images = bool(self.columns.images) or self.columns.messages is not None
            out["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // sharing - has_images))
        return out


def start(job: EngineJob, journal: Journal, placed: Callable[[Sequence[str]], None]) -> tuple[Engine, Renderers]:
    """The job's engine, ready, and its rendering processes, forked before the engine had a thread or a device. An engine
    that takes a gang has `placed` called with the nodes, by rank, once it has them.

    Raises:
        HerdError: it cannot start, and why.
    """
    config = job.config
    make_preparer: Callable[[], Preparer]
    make_engine: Callable[[], Engine]
    if config.engine.kind == "echo":
        make_preparer, make_engine = partial(EchoPreparer, config), partial(EchoEngine, config)
    else:
        from pipeline.engine import vllm as adapter

        path = localise(job.model.location, config.input.storage)
        adapter.load(config)
        make_preparer = partial(adapter.VllmPreparer.beside_the_engine, config, path)
        make_engine = partial(adapter.VllmEngine, config, job.model, path)
    if job.gang is not None:
        make_engine = partial(_with_gang, job, job.gang, make_engine, placed)
    cores = len(os.sched_getaffinity(0))
    processes = default_processes(config, cores, job.engines_per_node)
    threads = config.render.concurrency or default_concurrency(job.columns, cores)
    renderers = fork_renderers(
        processes,
        max(1, threads // processes),
        config,
        journal,
        make_preparer,
        partial(_recall, job),
        partial(_begin_renderer, os.getpid()),
    )
    return make_engine(), renderers


def _begin_renderer(parent: int) -> None:
    end_with(parent)
    be_called("herd-render")
    collect_seldom()


def _with_gang(
    job: EngineJob, wanted: Gang, make_engine: Callable[..., Engine], placed: Callable[[Sequence[str]], None]
) -> Engine:
    from pipeline import gang

    gang.join(job.address)
    seats = gang.reserve(wanted, job.node)
    placed(seats.nodes)
    if job.config.engine.kind == "echo":  # has no workers, and shows where they would be
        return make_engine(workers=gang.probe(seats))
    gang.spread_model(seats, job.model.location, job.config.input.storage, job.node)
    return make_engine(seats=seats.group)


def _recall(job: EngineJob) -> Recall:
    """What finds the answers of earlier runs, if the job shares them."""
    if job.config.cache.uri is None:
        return lambda key: None
    cache = AnswerCache(job.config, job.model)
    cache.read_index()
    return cache.recall


def collect_seldom() -> None:
    """Has the garbage collector leave what is here alone, and look at what is new a hundred times less often than by default:
    rows come and go as tuples without cycles, and looking at them took two thirds of the time of receiving them."""
    gc.freeze()
    gc.set_threshold(70_000)


def main(connection: Connection) -> None:
    environment, folder, job, journal_path, slots, rows = connection.recv()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    journal = Journal(journal_path, slots, rows)
    sending = threading.Lock()

    def send(*message: Any) -> None:
        with sending:
            connection.send(message)

    try:
        engine, renderers = start(job, journal, lambda nodes: send("placed", nodes))
        collect_seldom()
        pa.array([None], pa.int32())  # has pyarrow import what it will want, now rather than while the engine works
    except Exception as e:  # whatever keeps an engine from starting is told to the host, which decides
        send("failed", str(e) if isinstance(e, HerdError) else f"{type(e).__name__}: {e}")
        return

    def emit(ticket: int, piece: pa.RecordBatch) -> None:
        send("piece", ticket, to_ipc(piece), worker.figures())

    def on_death(death: BaseException) -> None:
        send("died", " ".join(f"{type(death).__name__}: {death}".split())[:500])
        os._exit(1)

    worker = Worker(job.config, job.columns, engine, journal, emit, on_death, renderers, run_id=job.run_id)
    facts = {**engine.info.facts, "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES")}
    send("ready", replace(engine.info, facts=facts))
    threading.Thread(target=_receive, args=(connection, worker), name="herd-receive", daemon=True).start()
    worker.run()


def _receive(connection: Connection, worker: Worker) -> None:
    """Takes questions until the host is gone, and this process with it."""
    entering = ThreadPoolExecutor(1, thread_name_prefix="herd-enter")
    while True:
        try:
            ticket, slot, indices, data, longest_first = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        entering.submit(worker.ask, ticket, slot, indices, from_ipc(data), longest_first=longest_first)
