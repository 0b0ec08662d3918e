"""Joins a Ray cluster, or starts one on this machine for the time of a command."""

import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ray

from pipeline.errors import HerdError

QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # engines must not give way to the daemons around them
}


@contextlib.contextmanager
def connected(address: str | None, *, verbose: bool = False) -> Iterator[None]:
    """Ray for the time of the block: the cluster at `address` (or `RAY_ADDRESS`), else a new one on this machine.

    Leaving the block disconnects, which ends the run's actors and tasks; a cluster started here ends too. If the caller
    was connected already, its connection is used and kept.

    Raises:
        HerdError: no cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    address = address or os.environ.get("RAY_ADDRESS")
    # cores here are slots, not threads: one more than there are, for reading beside an engine a core
    local = {} if address else {"num_cpus": (os.cpu_count() or 1) + 1, "include_dashboard": False}
    options = {
        "address": address or "local",
        "log_to_driver": verbose,
        "logging_level": logging.WARNING if verbose else logging.CRITICAL,
        **local,
    }
    # from the first moment to the last, Ray's threads print warnings on stdout, which may be for a document
    with contextlib.redirect_stdout(sys.stderr if verbose else _WithoutRetries()):
        try:
            with contextlib.nullcontext() if verbose else _silent_stderr():
                _start(options)
        except Exception as e:  # Ray raises all kinds, plain Exception among them
            raise HerdError(
                f"No Ray cluster answers: {str(e).splitlines()[0]}",
                where=address,
                todo="Start one with `ray start --head`, or leave the address out to run on this machine. One that asks for "
                "a token needs RAY_AUTH_MODE=token.",
            ) from None
        try:
            yield
        finally:
            # what is done is done, and how the farewell goes changes nothing of it
            with contextlib.suppress(Exception):
                ray.shutdown()


class _WithoutRetries(io.TextIOBase):
    """stderr without what Ray says of calls that it makes again, which holds the traceback of each: a run tells of the
    deaths of its engines itself."""

    def __init__(self) -> None:
        self._dropped = False

    def write(self, text: str) -> int:
        ends_dropped = self._dropped and text == "\n"
        self._dropped = not ends_dropped and " retries remaining, so the task will be retried" in text
        if not ends_dropped and not self._dropped:
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def fileno(self) -> int:
        return sys.stderr.fileno()


def is_own_cluster(address: str | None = None) -> bool:
    """Whether the connected cluster was started by this process, and so is this machine; if none is connected, whether
    `connected(address)` would start one."""
    if not ray.is_initialized():
        return not (address or os.environ.get("RAY_ADDRESS"))
    node = ray._private.worker._global_node
    return node is not None and bool(node.is_head())


def _start(options: dict[str, Any]) -> None:
    """Starts or joins Ray. A cluster of our own gets a second chance: Ray gives its own parts 30 s, which a machine that is
    busy with something else may not keep."""
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception:
        ray.shutdown()
        if options["address"] != "local":
            raise
        ray.init(**options)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own would end the command with status 15


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keeps what Ray's native code says while it starts off the terminal; its faults are raised as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
