"""Who may write an output, with real processes that are killed, stopped and raced, on a local folder."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import StorageConfig
from pipeline.errors import HerdError, StorageError
from pipeline.lease import NAME, FencedError, Holder, Lease, check
from pipeline.output import Output
from pipeline.storage import FileInfo, Store
from tests.unit.memory_store import MemoryStore, Worker
from tests.unit.test_commit_protocol import NONE, block

LONG_S = 3600.0
"""A lease that no test waits out: who gets an output by it has got it at once."""
ALIVE_S = 3.0
SHORT_S = 1.0
FORK = multiprocessing.get_context("fork")
THEIRS = block(0, NONE, "theirs")
at_once = pytest.mark.timeout(15)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def store(uri: str) -> Store:
    return Store(uri, StorageConfig())


@pytest.fixture
def take(uri: str, store: Store) -> Iterator[Callable[..., Lease]]:
    """Takes the output's lease in this process; gives it back after the test."""
    with contextlib.ExitStack() as stack:

        def taken(lease_s: float = LONG_S, through: Store = store) -> Lease:
            lease = Lease(uri, through, lease_s)
            stack.callback(lease.release)
            return lease

        yield taken


class Session:
    """Another process that holds an output, and does what it is told."""

    def __init__(self, uri: str, lease_s: float) -> None:
        self._pipe, theirs = FORK.Pipe()
        self.process: ForkProcess = FORK.Process(target=_live, args=(uri, lease_s, theirs), daemon=True)
        self.process.start()
        assert self.says() == "held"

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def says(self) -> str:
        assert self._pipe.poll(60), "the other process says nothing"
        return str(self._pipe.recv())

    def told(self, what: str) -> str:
        self._pipe.send(what)
        return self.says()

    def signalled(self, number: signal.Signals, until: int) -> None:
        """Sends a signal and waits for its effect, leaving a dead process unburied."""
        os.kill(self.pid, number)
        os.waitid(os.P_PID, self.pid, until | os.WNOWAIT)


def _live(uri: str, lease_s: float, pipe: Connection) -> None:
    store = Store(uri, StorageConfig())
    output = Output(uri, store)
    try:
        lease = Lease(uri, store, lease_s)
        pipe.send("held")
        while True:
            match pipe.recv():
                case "wait until lost":
                    pipe.send("lost" if lease.is_lost.wait(60) else "held")
                case "commit":
                    try:
                        output.commit(THEIRS, "run-1", lease.token)
                        pipe.send("committed")
                    except FencedError as e:
                        pipe.send(str(e))
                case "release":
                    lease.release()
                    pipe.send("released")
    except EOFError:
        pass
    except HerdError as e:
        pipe.send(str(e))
    os._exit(0)


@pytest.fixture
def session(uri: str) -> Iterator[Callable[[float], Session]]:
    begun: list[Session] = []

    def begin(lease_s: float) -> Session:
        begun.append(Session(uri, lease_s))
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()
        one.process.join()


def write_holder(uri: str, **changes: Any) -> None:
    holder = Holder("them", "far-away", "boot", 7, "1", "2025-06-01", **changes)
    Path(uri).mkdir(exist_ok=True)
    partial = Path(uri) / ".partial"
    partial.write_text(json.dumps(asdict(holder)))
    partial.replace(Path(uri) / NAME)


def owner(uri: str) -> str:
    return str(json.loads((Path(uri) / NAME).read_text())["owner"])


# ---- one at a time


def test_second_session_is_told_who_holds_the_output(uri: str, store: Store, session: Callable[..., Session]) -> None:
    first = session(ALIVE_S)
    with pytest.raises(FencedError) as caught:
        Lease(uri, store, ALIVE_S)
    assert f"process {first.pid} on {socket.gethostname()}" in str(caught.value)
    assert first.told("commit") == "committed"


@at_once
def test_released_lease_is_free_at_once(uri: str, take: Callable[..., Lease], session: Callable[..., Session]) -> None:
    assert session(LONG_S).told("release") == "released"
    assert not os.path.exists(f"{uri}/{NAME}")
    take()


@at_once
def test_holder_that_was_killed_is_replaced_at_once(
    take: Callable[..., Lease], session: Callable[..., Session]
) -> None:
    first = session(LONG_S)
    first.process.kill()
    first.process.join()
    take()


@at_once
def test_holder_that_is_dead_but_not_buried_is_replaced_at_once(
    take: Callable[..., Lease], session: Callable[..., Session]
) -> None:
    """A container's first process often buries nobody."""
    session(LONG_S).signalled(signal.SIGKILL, os.WEXITED)
    take()


def test_holder_that_slept_is_overtaken_and_can_write_no_more(
    uri: str, take: Callable[..., Lease], session: Callable[..., Session]
) -> None:
    first = session(SHORT_S)
    first.signalled(signal.SIGSTOP, os.WSTOPPED)
    lease = take(SHORT_S)
    os.kill(first.pid, signal.SIGCONT)
    assert first.told("commit").startswith("This session has lost its output to another: process")
    assert first.told("wait until lost") == "lost"
    assert first.told("release") == "released"
    assert owner(uri) == lease.token.owner
    assert os.listdir(uri) == [NAME]
    assert not lease.is_lost.is_set()


def test_lease_of_another_host_is_waited_out(uri: str, take: Callable[..., Lease]) -> None:
    write_holder(uri)
    began = time.monotonic()
    take(SHORT_S)
    assert time.monotonic() - began >= SHORT_S


def test_lease_of_another_host_that_is_renewed_is_left_alone(uri: str, store: Store) -> None:
    write_holder(uri)
    ended = threading.Event()

    def renew() -> None:
        beat = 0
        while not ended.wait(0.05):
            write_holder(uri, beat=(beat := beat + 1))

    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(renew)
        with pytest.raises(FencedError, match="process 7 on far-away, since 2025-06-01"):
            Lease(uri, store, ALIVE_S)
        ended.set()
        renewing.result()
    assert owner(uri) == "them"


class NoticingStore(Store):
    """A store that tells when something is read."""

    def __init__(self, uri: str, storage: StorageConfig) -> None:
        super().__init__(uri, storage)
        self.was_read = threading.Event()

    def read(self, uri: str) -> bytes:
        data = super().read(uri)
        self.was_read.set()
        return data


@at_once
def test_lease_that_is_given_back_while_somebody_waits_is_free(uri: str, take: Callable[..., Lease]) -> None:
    write_holder(uri)
    noticing = NoticingStore(uri, StorageConfig())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, LONG_S, noticing)
        assert noticing.was_read.wait(60)
        os.unlink(f"{uri}/{NAME}")
        lease = waiting.result()
    assert owner(uri) == lease.token.owner


@at_once
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b'{"owner": "x", "more": 1}', b"\xff\xfe"])
def test_lease_that_names_nobody_is_free(uri: str, take: Callable[..., Lease], data: bytes) -> None:
    Path(uri).mkdir()
    (Path(uri) / NAME).write_bytes(data)
    lease = take()
    assert owner(uri) == lease.token.owner


def race(barrier: Barrier, uris: list[str], pipe: Connection) -> None:
    """Goes for many outputs at once and says which it got."""

    def go(uri: str) -> bool:
        try:
            Lease(uri, Store(uri, StorageConfig()), ALIVE_S)
        except FencedError:
            return False
        return True

    barrier.wait()
    with ThreadPoolExecutor(len(uris)) as pool:
        pipe.send(list(pool.map(go, uris)))
    pipe.recv()
    os._exit(0)


@pytest.mark.parametrize("stood", [None, b"nobody's"])
def test_of_two_processes_that_race_for_a_lease_one_gets_it(tmp_path: Path, stood: bytes | None) -> None:
    uris = [str(tmp_path / str(n)) for n in range(40)]
    if stood is not None:
        for uri in uris:
            Path(uri).mkdir()
            (Path(uri) / NAME).write_bytes(stood)
    barrier = FORK.Barrier(2)
    pipes = [FORK.Pipe() for _ in range(2)]
    racers = [FORK.Process(target=race, args=(barrier, uris, theirs), daemon=True) for _, theirs in pipes]
    for racer in racers:
        racer.start()
    try:
        assert all(ours.poll(60) for ours, _ in pipes)
        got = [ours.recv() for ours, _ in pipes]
    finally:
        for racer in racers:
            racer.kill()
            racer.join()
    assert [n for n, both in enumerate(zip(*got, strict=True)) if sum(both) != 1] == []


@pytest.mark.parametrize("stood", [None, b"nobody's"])
@pytest.mark.parametrize("first", range(1, 14))
def test_of_two_sessions_that_take_turns_at_a_store_one_gets_the_lease(
    first: int, stood: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stops after some requests, then the first goes on to its end, and then the other."""

    def wait(seconds: float) -> None:
        raise FencedError("has to wait")

    monkeypatch.setattr("pipeline.lease.time", SimpleNamespace(sleep=wait, monotonic=time.monotonic))

    def meet(second: int) -> None:
        memory = MemoryStore("s3://bucket/out")
        if stood is not None:
            memory.put(f"s3://bucket/out/{NAME}", stood)
        workers = [Worker(name, lambda: Lease("s3://bucket/out", memory, LONG_S)) for name in ("one", "other")]
        for worker, steps in zip(workers, (first, second), strict=True):
            for _ in range(steps):
                if not worker.is_done:
                    worker.step()
        for worker in workers:
            worker.run()
        holders = [w.result for w in workers if w.error is None]
        assert len(holders) == 1, f"the other stopped after {second}"
        check(memory, "s3://bucket/out", holders[0].token)
        holders[0].release()
        assert memory.objects == {}

    for second in range(1, 14):
        meet(second)


# ---- looking and renewing


def test_check_passes_the_holder_alone(uri: str, store: Store, take: Callable[..., Lease]) -> None:
    lease = take()
    check(store, uri, lease.token)
    write_holder(uri)
    with pytest.raises(FencedError, match="process 7 on far-away"):
        check(store, uri, lease.token)
    os.unlink(f"{uri}/{NAME}")
    with pytest.raises(FencedError, match="its lease is gone"):
        check(store, uri, lease.token)


def test_release_leaves_another_sessions_lease(uri: str, take: Callable[..., Lease]) -> None:
    lease = take()
    write_holder(uri)
    lease.release()
    assert owner(uri) == "them"


class FaultyStore(Store):
    """A store whose conditional puts fail while `fault` says so, before or after their effect."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, StorageConfig())
        self.fault = ""
        self.failed, self.renewed = threading.Semaphore(0), threading.Semaphore(0)

    def put_if(self, uri: str, data: bytes, expected: FileInfo | None) -> FileInfo | None:
        fault = self.fault
        if fault == "out of reach":
            self.failed.release()
            raise StorageError("out of reach", where=uri)
        info = super().put_if(uri, data, expected)
        if fault == "no answer":
            self.failed.release()
            raise StorageError("no answer", where=uri)
        self.renewed.release()
        return info


@pytest.mark.parametrize("fault", ["out of reach", "no answer"])
def test_lease_outlives_a_store_that_fails_for_a_while(uri: str, take: Callable[..., Lease], fault: str) -> None:
    faulty = FaultyStore(uri)
    lease = take(0.3, faulty)
    faulty.fault = fault
    for _ in range(3):
        assert faulty.failed.acquire(timeout=60)
    before = json.loads((Path(uri) / NAME).read_text())["beat"]
    faulty.fault = ""
    while faulty.renewed.acquire(blocking=False):
        pass
    for _ in range(3):
        assert faulty.renewed.acquire(timeout=60)
    check(faulty, uri, lease.token)
    assert not lease.is_lost.is_set()
    assert json.loads((Path(uri) / NAME).read_text())["beat"] > before


class UnreadableStore(Store):
    def read(self, uri: str) -> bytes:
        raise StorageError("The store refuses access", where=uri)


def test_lease_that_cannot_be_read_is_a_fault_of_the_store_and_not_a_lost_lease(
    uri: str, take: Callable[..., Lease]
) -> None:
    lease = take()
    with pytest.raises(StorageError, match="refuses access"):
        check(UnreadableStore(uri, StorageConfig()), uri, lease.token)


@at_once
def test_lease_that_cannot_be_read_is_not_asked_for_without_end(uri: str, take: Callable[..., Lease]) -> None:
    write_holder(uri)
    with pytest.raises(StorageError, match="refuses access"):
        take(SHORT_S, UnreadableStore(uri, StorageConfig()))


# ---- the conditional put


def test_put_if_writes_what_is_new_and_replaces_what_is_expected(uri: str, store: Store) -> None:
    first = store.put_if(f"{uri}/a", b"one", None)
    assert first == store.stat(f"{uri}/a")
    second = store.put_if(f"{uri}/a", b"other", first)
    assert second == store.stat(f"{uri}/a")
    assert store.read(f"{uri}/a") == b"other"


def test_put_if_leaves_what_is_not_expected(uri: str, store: Store) -> None:
    stood = store.put(f"{uri}/a", b"one")
    assert store.put_if(f"{uri}/a", b"mine", None) is None
    gone = store.put(f"{uri}/b", b"longer")
    assert store.put_if(f"{uri}/a", b"mine", gone) is None
    assert store.put_if(f"{uri}/none", b"mine", stood) is None
    assert store.read(f"{uri}/a") == b"one"
    assert sorted(os.listdir(uri)) == ["a", "b"]


def test_put_if_counts_equal_content_as_written(uri: str, store: Store) -> None:
    stood = store.put(f"{uri}/a", b"same")
    assert store.put_if(f"{uri}/a", b"same", None) == stood
    assert store.put_if(f"{uri}/a", b"same", store.put(f"{uri}/b", b"longer")) == stood


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_put_if_that_fails_leaves_the_old_and_nothing_else(
    uri: str, store: Store, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    stood = store.put(f"{uri}/a", b"old")

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"pipeline.storage.os.{call}", fail)
    with pytest.raises(StorageError, match="The disk is full"):
        store.put_if(f"{uri}/a", b"new", stood)
    assert os.listdir(uri) == ["a"]
    assert Path(uri, "a").read_bytes() == b"old"


def test_put_if_after_its_object_was_removed_meanwhile_is_refused() -> None:
    """As S3 has it, a put that names what it replaces finds nothing there, and answers 404."""
    memory = MemoryStore("s3://bucket/out")
    stood = memory.put("s3://bucket/out/a", b"one")
    worker = Worker("putting", lambda: memory.put_if("s3://bucket/out/a", b"other", stood))
    worker.step()
    worker.step()  # it has looked, and stops before the put
    memory.remove("s3://bucket/out/a")
    worker.run()
    assert (worker.error, worker.result, memory.objects) == (None, None, {})


def put_race(barrier: Barrier, uri: str, me: int, rounds: int, pipe: Connection) -> None:
    store = Store(uri, StorageConfig())
    won: list[bool] = []
    for number in range(rounds):
        barrier.wait()
        won.append(store.put_if(f"{uri}/{number}", f"mine: {me}".encode(), None) is not None)
    pipe.send(won)
    os._exit(0)


def test_of_two_processes_that_create_an_object_one_succeeds(uri: str) -> None:
    rounds = 100
    barrier = FORK.Barrier(2)
    pipes = [FORK.Pipe() for _ in range(2)]
    racers = [
        FORK.Process(target=put_race, args=(barrier, uri, me, rounds, pipes[me][1]), daemon=True) for me in range(2)
    ]
    for racer in racers:
        racer.start()
    try:
        assert all(ours.poll(60) for ours, _ in pipes)
        won = [ours.recv() for ours, _ in pipes]
    finally:
        for racer in racers:
            racer.kill()
            racer.join()
    winners = [int(Path(uri, str(n)).read_text()[-1]) for n in range(rounds)]
    assert won == [[winner == me for winner in winners] for me in range(2)]
    assert len(os.listdir(uri)) == rounds


def test_what_interrupted_puts_left_is_never_listed_and_is_swept(uri: str, store: Store) -> None:
    store.put(f"{uri}/data/part-000001.parquet", b"x")
    left = Path(uri, "data", ".part-000002.parquet.0123.partial")
    left.write_bytes(b"half")
    Path(uri, "data", ".kept").write_bytes(b"")
    assert [os.path.basename(f.uri) for f in store.list_folder(f"{uri}/data")] == ["part-000001.parquet"]
    assert [os.path.basename(f.uri) for f in store.find(f"{uri}/data")] == ["part-000001.parquet"]
    store.sweep(f"{uri}/data")
    assert sorted(os.listdir(f"{uri}/data")) == [".kept", "part-000001.parquet"]
    store.sweep(f"{uri}/none")
