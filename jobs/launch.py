"""Starts, resumes and replays runs on behalf of the command line: model, plan, cluster, engines, summary."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cluster.connect import connected, is_own_cluster
from cluster.models import resolve_model, with_profile
from cluster.preflight.quick import check_before_engines
from cluster.room import Patience, addable_nodes, live_nodes, place_on_cluster
from jobs.choosing import check_fit, gpus_of, settled
from jobs.display import Display
from jobs.forecast import Forecast
from jobs.guard import advise
from pipeline import books
from pipeline.budget import allowed_rows
from pipeline.config import RunConfig, StorageConfig
from pipeline.engine import vllm
from pipeline.engine.vllm_names import check_names
from pipeline.errors import before_the_run
from pipeline.facts import find_git_revision
from pipeline.host import forkserver
from pipeline.host.process import import_path
from pipeline.progress import Progress
from pipeline.run import execute

SHORT_PLAN_S = 1.0
"""A plan that is made within this time is waited for: what is wrong with a job is then said before Ray is started."""


@dataclass(frozen=True)
class Launch:
    """How a run is started, whatever it answers."""

    address: str | None = None
    """Of a Ray cluster. None: `RAY_ADDRESS`, or a cluster of this machine for the time of the run."""
    quiet: bool = False
    """Show no progress."""
    verbose: bool = False
    """Show what Ray's processes say."""
    preflight: bool = True
    """Check the cluster's nodes before engines are taken."""
    fork_server: str | None = None
    """Of this machine, for a run whose engines are here; see `pipeline.host.forkserver`."""


ALONE = Launch()
"""On this machine, or where `RAY_ADDRESS` says."""


@dataclass(frozen=True)
class Finished:
    """A run that is complete: its totals, this session's last figures, and the prepared run itself."""

    run: books.PreparedRun
    totals: dict[str, Any]
    figures: Progress | None

    @property
    def is_within_limits(self) -> bool:
        """Whether no more rows were quarantined than `limits` allow."""
        allowed = allowed_rows(self.run.config.limits, self.totals["rows_in"])
        return bool(self.totals["rows_quarantined"] <= allowed)


def run_job(
    config: RunConfig,
    launch: Launch = ALONE,
    *,
    narrowed: Callable[[books.PreparedRun], books.PreparedRun] = lambda prepared: prepared,
) -> Finished:
    """Runs a job to its end, or resumes it if its output holds an earlier part of it. `narrowed` may take shards away from
    the plan.

    Raises:
        HerdError: with the sentence for the user, and the exit code.
    """
    config = with_profile(config)
    check_names(config.engine, config.sampling)
    reasons: tuple[str, ...] = ()
    with ExitStack() as around:
        launch = around.enter_context(_with_fork_server(config, launch))
        if config.engine.auto:
            around.enter_context(connected(launch.address, verbose=launch.verbose))
            with before_the_run():
                config, reasons = settled(config, gpus_of(live_nodes(), addable_nodes(), config.pool.accelerator))
        for sentence in () if launch.quiet else reasons:
            print(sentence, file=sys.stderr, flush=True)

        def prepare() -> books.PreparedRun:
            say_if_close(config)
            model, revision = resolve_model(config), find_git_revision(os.getcwd())
            return narrowed(books.prepare(config, model, git_revision=revision, choice=reasons))

        return _finish(prepare, launch)


def say_if_close(config: RunConfig) -> None:
    """Warns of an engine that hardly fits its GPUs. Raises `ConfigError` for one that cannot, as `check_fit`."""
    if (doubt := check_fit(config)) is not None:
        print(f"Warning: {doubt}", file=sys.stderr, flush=True)


def _fitting(amend: books.Amend) -> books.Amend:
    """`amend`, with a look at whether an engine that it changes fits."""

    def amended(begun: RunConfig) -> RunConfig:
        config = amend(begun)
        if (config.engine, config.pool.accelerator) != (begun.engine, begun.pool.accelerator):
            say_if_close(config)
        return config

    return amended


def resume_run(
    uri: str, storage: StorageConfig, launch: Launch = ALONE, *, amend: books.Amend = lambda config: config
) -> Finished:
    """Continues the run in an output folder by its own plan, with settings of speed and limits as `amend` makes them.
    Raises as `run_job`."""
    revision = find_git_revision(os.getcwd())
    prepare = partial(books.prepare_resume, uri, storage, resolve_model, amend=_fitting(amend), git_revision=revision)
    return _finish(prepare, launch)


def replay_run(
    uri: str,
    storage: StorageConfig,
    keep: Callable[[dict[str, Any]], bool],
    launch: Launch = ALONE,
    *,
    amend: books.Amend = lambda config: config,
) -> Finished:
    """Asks again those quarantined rows for which `keep` holds, as `amend` would have them asked, and merges what comes
    back. Raises as `run_job`."""
    revision = find_git_revision(os.getcwd())
    prepare = partial(
        books.prepare_replay, uri, storage, resolve_model, keep, amend=_fitting(amend), git_revision=revision
    )
    return _finish(prepare, launch)


def _finish(prepare: Callable[[], books.PreparedRun], launch: Launch) -> Finished:
    """Prepares the run and carries it out. Ray is started, or joined, while a plan that takes its time is being made; no
    engine takes a GPU before, since what a plan finds out (a missing column, a model that does not fit) must not cost one."""
    planner = ThreadPoolExecutor(1, thread_name_prefix="herd-plan")  # not waited for when somebody interrupts
    with ExitStack() as cluster:
        planning = planner.submit(before_the_run()(prepare))
        wait([planning], SHORT_PLAN_S)
        if not planning.done():
            cluster.enter_context(connected(launch.address, verbose=launch.verbose))
        return finish(planning.result(), launch)


def finish(prepared: books.PreparedRun, launch: Launch = ALONE) -> Finished:
    """Runs what is prepared to its end, and gives its output's lease back. Raises as `run_job`."""
    advise(books.resume_advice(prepared.config.output))
    try:
        return _carried_out(prepared, launch)
    finally:
        prepared.lease.release()


def _carried_out(prepared: books.PreparedRun, launch: Launch) -> Finished:
    if not prepared.pending.num_rows:
        return Finished(prepared, books.close(prepared, Progress()), None)
    config = prepared.config
    last: list[Progress] = []
    with _with_fork_server(config, launch) as launch, connected(launch.address, verbose=launch.verbose):
        placement = replace(place_on_cluster(config), fork_server=launch.fork_server)
        for warning in check_before_engines(prepared) if launch.preflight else ():
            print(f"Warning: {warning}", file=sys.stderr, flush=True)
        patience, forecast = Patience(config, placement), Forecast(prepared)
        with Display(config.name, quiet=launch.quiet) as display, _asked_to_stop() as asked:

            def observe(figures: Progress) -> None:
                last[:] = [figures]
                display.observe(figures)
                patience.check(figures)
                forecast.keep()
                if asked.is_set():
                    asked.clear()
                    raise KeyboardInterrupt

            totals = execute(prepared, placement, observe)
    return Finished(prepared, totals, last[0] if last else None)


@contextlib.contextmanager
def _with_fork_server(config: RunConfig, launch: Launch) -> Iterator[Launch]:
    """The launch with a fork server for the time of the block, if its engines will be on this machine. It imports what they
    need, and takes no GPU, while the plan is made and Ray is started."""
    if launch.fork_server is not None or not is_own_cluster(launch.address):
        yield launch
        return
    environment = {**vllm.environment(config), **os.environ, **import_path()}
    with forkserver.listening(config.engine.kind, environment) as address:
        yield replace(launch, fork_server=address)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, the first time; after that they interrupt. An interrupt that is raised wherever
    the main thread happens to be can get lost in a library's callback, and the run would go on."""
    asked = threading.Event()
    is_first = True

    def ask(signum: int, frame: Any) -> None:
        nonlocal is_first
        if not is_first:
            raise KeyboardInterrupt
        is_first = False
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
