"""Starts, resumes and replays runs on behalf of the command line: model, plan, cluster, engines, summary."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from cluster.connect import connected
from cluster.models import resolve_model, with_profile
from cluster.placement import check_room, engine_resources
from jobs.display import Display
from pipeline import books
from pipeline.budget import allowed_rows
from pipeline.config import RunConfig, StorageConfig
from pipeline.engine.vllm_names import check_names
from pipeline.errors import before_the_run
from pipeline.facts import find_git_revision
from pipeline.progress import Progress
from pipeline.run import execute


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
    *,
    address: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
    narrowed: Callable[[books.PreparedRun], books.PreparedRun] = lambda prepared: prepared,
) -> Finished:
    """Runs a job to its end, or resumes it if its output holds an earlier part of it. `narrowed` may take shards away from
    the plan.

    Raises:
        HerdError: with the sentence for the user, and the exit code.
    """
    config = with_profile(config)
    check_names(config.engine, config.sampling)
    with before_the_run():
        prepared = books.prepare(config, resolve_model(config), git_revision=find_git_revision(os.getcwd()))
    return finish(narrowed(prepared), address=address, quiet=quiet, verbose=verbose)


def resume_run(
    uri: str,
    storage: StorageConfig,
    *,
    amend: books.Amend = lambda config: config,
    address: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> Finished:
    """Continues the run in an output folder by its own plan, with settings of speed and limits as `amend` makes them.
    Raises as `run_job`."""
    revision = find_git_revision(os.getcwd())
    with before_the_run():
        prepared = books.prepare_resume(uri, storage, resolve_model, amend=amend, git_revision=revision)
    return finish(prepared, address=address, quiet=quiet, verbose=verbose)


def replay_run(
    uri: str,
    storage: StorageConfig,
    keep: Callable[[dict[str, Any]], bool],
    *,
    amend: books.Amend = lambda config: config,
    address: str | None = None,
    quiet: bool = False,
    verbose: bool = False,
) -> Finished:
    """Asks again those quarantined rows for which `keep` holds, as `amend` would have them asked, and merges what comes
    back. Raises as `run_job`."""
    revision = find_git_revision(os.getcwd())
    with before_the_run():
        prepared = books.prepare_replay(uri, storage, resolve_model, keep, amend=amend, git_revision=revision)
    return finish(prepared, address=address, quiet=quiet, verbose=verbose)


def finish(
    prepared: books.PreparedRun, *, address: str | None = None, quiet: bool = False, verbose: bool = False
) -> Finished:
    """Runs what is prepared to its end, and gives its output's lease back. Raises as `run_job`."""
    try:
        return _carried_out(prepared, address, quiet, verbose)
    finally:
        prepared.lease.release()


def _carried_out(prepared: books.PreparedRun, address: str | None, quiet: bool, verbose: bool) -> Finished:
    if not prepared.pending.num_rows:
        return Finished(prepared, books.close(prepared, Progress()), None)
    config = prepared.config
    last: list[Progress] = []
    with connected(address, verbose=verbose), Display(config.name, quiet=quiet) as display:
        check_room(config, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        with _asked_to_stop() as asked:

            def observe(figures: Progress) -> None:
                last[:] = [figures]
                display.observe(figures)
                if asked.is_set():
                    asked.clear()
                    raise KeyboardInterrupt

            totals = execute(prepared, engine_resources(config), observe)
    return Finished(prepared, totals, last[0] if last else None)


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
