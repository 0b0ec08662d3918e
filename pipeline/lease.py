"""The right to write an output: one session at a time, wherever it runs.

A session holds `_lease.json` and renews it while it lives. Another that finds it waits to see whether it is renewed:
clocks of two machines are never compared, only whether the object changes. A holder that stopped renewing is replaced; one
whose process is gone from this very machine is replaced at once. Whoever writes for a session looks at the lease first,
so that an owner that slept and wakes up finds that it is one no more.

Where the store honours conditional puts, taking and renewing are atomic; S3-like stores that do not are found out by a
put that ought to be refused, and there a new holder waits a moment and looks whether it is still the one.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import HerdError
from pipeline.facts import now
from pipeline.storage import FileInfo, Store

NAME = "_lease.json"
SETTLE_S = 2.0
BEATS_A_LEASE = 6


class FencedError(HerdError):
    """Another session writes this output."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A session, as the lease names it. `beat` grows with each renewal."""

    owner: str
    host: str
    boot: str
    pid: int
    began: str
    since: str
    beat: int = 0

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine that no longer runs. False where that cannot be known."""
        return (self.host, self.boot) == (socket.gethostname(), _boot()) and _began(self.pid) != self.began

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _boot() -> str:
    """This boot of this machine, and this container's own processes."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _began(pid: int) -> str:
    """When a process of this machine was started, in the kernel's ticks; empty if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # dead, and only not yet buried by its parent


@dataclass(frozen=True, slots=True)
class Token:
    """What those who write for a session carry: enough to look whether the lease is still theirs."""

    owner: str


def check(store: Store, output_uri: str, token: Token) -> None:
    """Raises `FencedError` unless the output is still the token's session's to write."""
    holder, _ = _read(store, f"{output_uri}/{NAME}")
    if holder is None or holder.owner != token.owner:
        raise FencedError(_lost(holder), where=output_uri, todo="Let that session finish; nothing committed is lost.")


class Lease:
    """A lease that is held and renewed on a thread of its own, until `release`."""

    def __init__(self, output_uri: str, store: Store, lease_s: float) -> None:
        """Takes the lease.

        Raises:
            FencedError: another session holds it and is alive.
        """
        self._uri, self._output_uri, self._store, self._lease_s = f"{output_uri}/{NAME}", output_uri, store, lease_s
        pid = os.getpid()
        self._me = Holder(uuid.uuid4().hex, socket.gethostname(), _boot(), pid, _began(pid), now())
        self.is_lost = threading.Event()
        self._take()
        self.token = Token(self._me.owner)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_always, name="herd-lease", daemon=True)
        self._thread.start()

    def fenced(self) -> FencedError:
        """The error for a session that has lost its lease."""
        holder, _ = _read(self._store, self._uri)
        return FencedError(
            _lost(holder), where=self._output_uri, todo="Let that session finish; nothing committed is lost."
        )

    def release(self) -> None:
        """Gives the lease back, so that the next session need not wait. A store that is out of reach keeps it."""
        self._released.set()
        self._thread.join(timeout=self._lease_s)
        with contextlib.suppress(HerdError):
            holder, _ = _read(self._store, self._uri)
            if holder is not None and holder.owner == self._me.owner:
                self._store.remove(self._uri)

    def _put(self, expected: FileInfo | None) -> FileInfo | None:
        return self._store.put_if(self._uri, json.dumps(asdict(self._me)).encode(), expected)

    def _take(self) -> None:
        """Takes the lease as soon as it is free."""
        while True:
            holder, found = _read(self._store, self._uri)
            if holder is not None and not holder.is_gone:
                self._outwait(holder)
            stood = self._put(found)
            if stood is not None and self._has_settled():
                self._stood = stood
                return

    def _outwait(self, holder: Holder) -> None:
        """Returns when the holder has not renewed its lease for the lease's time, or has given it back."""
        deadline = time.monotonic() + self._lease_s
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._lease_s / BEATS_A_LEASE))
            seen, _ = _read(self._store, self._uri)
            if seen is None:
                return
            if seen != holder:
                raise FencedError(
                    f"Another session is writing this output: {seen}",
                    where=self._output_uri,
                    todo="Let it finish or stop it, then run again; or choose another output.",
                )

    def _has_settled(self) -> bool:
        """Whether the lease is really ours: known at once where the store keeps conditions, else after a moment."""
        if self._store.is_local or self._is_conditional():
            return True
        time.sleep(SETTLE_S)
        holder, _ = _read(self._store, self._uri)
        return holder is not None and holder.owner == self._me.owner

    def _is_conditional(self) -> bool:
        """Whether the store refuses to create what exists, tried with a file of our own that nobody else knows."""
        return self._store.refuses_to_create(f"{self._uri}.{self._me.owner}")

    def _renew_always(self) -> None:
        while not self._released.wait(self._lease_s / BEATS_A_LEASE):
            try:
                self._me = replace(self._me, beat=self._me.beat + 1)
                stood = self._put(self._stood)
                if stood is None:
                    holder, found = _read(self._store, self._uri)
                    if holder is None or found is None or holder.owner != self._me.owner:
                        self.is_lost.set()
                        return
                    stood = found
                self._stood = stood
            except HerdError:
                continue  # a store that is out of reach keeps everyone from writing, us included


def held(output_uri: str, store: Store, lease_s: float, act: Callable[["Lease"], Any]) -> Any:
    """What `act` gives; the lease is taken before it, and released if it fails."""
    lease = Lease(output_uri, store, lease_s)
    try:
        return act(lease)
    except BaseException:
        lease.release()
        raise


def _read(store: Store, uri: str) -> tuple[Holder | None, FileInfo | None]:
    """The holder and the object that names it. An object that names nobody counts as free."""
    found = store.find_one(uri)
    if found is None:
        return None, None
    try:
        return Holder(**json.loads(store.read(uri))), found
    except HerdError:
        if store.find_one(uri) is not None:
            raise
        return None, None  # it was given back just now
    except (ValueError, TypeError):
        return None, found


def _lost(holder: Holder | None) -> str:
    return f"This session has lost its output to another: {holder or 'its lease is gone'}"
