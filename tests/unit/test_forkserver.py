"""Fork servers with real processes of the echo engine: one that hosts share, and one of a host's own."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Pipe
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.host.forkserver import Line, listening
from pipeline.host.host import EngineHost, Events
from pipeline.host.process import import_path

from .test_host import WAIT_S, engine_job, is_alive, shard

ENVIRONMENT = {**os.environ, **import_path()}


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], EngineHost]]:
    """Opens hosts, and closes them at the end. They and servers must leave no files behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened: list[EngineHost] = []

    def begin(address: str | None, events: Events | None = None) -> EngineHost:
        job = replace(engine_job(engine={"kind": "echo"}), fork_server=address)
        opened.append(EngineHost(job, max_rows=100, events=events))
        return opened[-1]

    yield begin
    for each in opened:
        each.close()
    assert list(tmp_path.iterdir()) == []


def pid_of(host: EngineHost) -> int:
    assert host.info is not None
    return int(host.info.facts["pid"])


def said(host: EngineHost, text: str) -> list[str | None]:
    answers: pa.Table = host.answer(shard([text])).pieces
    return answers["response"].to_pylist()


def test_hosts_share_a_server_and_outlive_it(host: Callable[..., EngineHost]) -> None:
    deaths: list[str] = []
    with listening("echo", ENVIRONMENT) as address:
        assert stat.S_IMODE(Path(address).parent.stat().st_mode) == 0o700
        events = Events(died=lambda error_type, message: deaths.append(message))
        first, second = host(address, events), host(address)
        engines = pid_of(first), pid_of(second)
        assert parent_of(engines[0]) == parent_of(engines[1])
        assert [said(first, "a"), said(second, "b")] == [["a"], ["b"]]
        second.close()
        assert [is_alive(pid) for pid in engines] == [True, False]
    until(lambda: len(deaths) == 1)
    assert deaths[0].startswith("the process that it was forked from has ended")
    assert said(first, "c") == ["c"]
    assert pid_of(first) not in engines and not is_alive(engines[0])


def test_host_opens_a_server_of_its_own_where_none_answers(host: Callable[..., EngineHost], tmp_path: Path) -> None:
    alone = host(str(tmp_path / "nobody"))
    server = parent_of(pid_of(alone))
    assert said(alone, "a") == ["a"] and parent_of(server) == os.getpid()
    alone.close()
    assert not is_running(server)


def test_line_tells_how_an_engine_ended_and_gives_it_the_host_s_output(capfd: pytest.CaptureFixture[str]) -> None:
    with closing(Line(None, "echo", ENVIRONMENT)) as line:
        for _ in range(2):
            ours, theirs = Pipe()
            line.fork(theirs)
            theirs.close()
            ours.close()  # it finds nobody to ask
            assert line.how_it_ended() == "its process ended with 1"
    assert capfd.readouterr().err.count("Traceback") == 2


def test_line_kills_an_engine_that_waits() -> None:
    with listening("echo", ENVIRONMENT) as address, closing(Line(address, "echo", ENVIRONMENT)) as line:
        ours, theirs = Pipe()
        line.fork(theirs)
        theirs.close()
        line.kill()  # returns when it has ended, and its end of the pipe with it
        assert ours.poll(0)
        with pytest.raises(EOFError):
            ours.recv()
        line.kill()


def test_server_and_engines_end_with_the_opener() -> None:
    """However that ends: it cannot close anything here."""
    program = (
        "import os, sys\n"
        "from multiprocessing.connection import Pipe\n"
        "from pipeline.host.forkserver import Line, listening\n"
        "with listening('echo', dict(os.environ)) as address:\n"
        "    line = Line(address, 'echo', {})\n"
        "    ours, theirs = Pipe()\n"
        "    line.fork(theirs)\n"
        "    print(address, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    opener = subprocess.Popen(
        [sys.executable, "-c", program], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert opener.stdout is not None and opener.stdin is not None
    address = opener.stdout.readline().strip()
    children = Path(f"/proc/{opener.pid}/task/{opener.pid}/children")
    (server,) = map(int, children.read_text().split())
    below = Path(f"/proc/{server}/task/{server}/children")
    until(lambda: bool(below.read_text().split()))
    (engine,) = map(int, below.read_text().split())
    opener.send_signal(signal.SIGKILL)
    opener.wait()
    until(lambda: not is_running(server) and not is_alive(engine))
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
        late.connect(address)
    Path(address).unlink()
    Path(address).parent.rmdir()
    opener.stdin.close()
    opener.stdout.close()
