"""A process that has imported what engines need, and is forked for each of them.

Importing vLLM takes many seconds (4 to 11 on the machines seen). A fork has them behind it: the first engine of a run whose
command opened a server while Ray started, and every engine that is started again. A server ends with the process that
opened it, and an engine with its host: the server sees the host's line close, and kills the engine with all that it started.

A line is a socket between a host and a server, for one engine at a time. The host sends `FORK` with three descriptors (the
engine's end of their pipe, and where it writes), later perhaps `KILL`; the server sends the wait status when the engine has
ended. A server has no threads, since a fork has only the one that forked.
"""

import contextlib
import gc
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import NoReturn

from pipeline.fate import be_called, end_with
from pipeline.host import process

FORK, KILL = b"F", b"K"
STATUS = struct.Struct("i")
BACKLOG = 1024
END_S = 30.0
"""How long the end of an engine or of a server is waited for: its memory and its GPU are the next one's."""

Server = subprocess.Popen[bytes]


@contextlib.contextmanager
def listening(kind: str, environment: Mapping[str, str]) -> Iterator[str]:
    """A server for the time of the block, for hosts on this machine; yields its address. What libraries have to say when
    they are imported is not shown."""
    folder = tempfile.mkdtemp(prefix="herd-")  # mode 0700: whoever reaches the socket runs what they like as this user
    address = os.path.join(folder, "fork")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(address)
            listener.listen(BACKLOG)
            server = _opened(kind, environment, listener, subprocess.DEVNULL)
        try:
            yield address
        finally:
            _close(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(kind: str, environment: Mapping[str, str], end: socket.socket, output: int | None) -> Server:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.host.forkserver", str(end.fileno()), kind],
        pass_fds=[end.fileno()],
        env=environment,
        stdin=subprocess.PIPE,  # never written to; it closes when this process ends, however that comes about
        stdout=output,
        stderr=output,
        start_new_session=True,  # an interrupt from a terminal is the command's alone
    )


def _close(server: Server) -> None:
    server.terminate()
    try:
        server.wait(END_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    assert server.stdin is not None
    server.stdin.close()


class Line:
    """A host's line to a server: the one at an address or, where none answers, one of the host's own."""

    def __init__(self, address: str | None, kind: str, environment: Mapping[str, str]) -> None:
        self._address, self._kind, self._environment = address, kind, environment
        self._server: Server | None = None
        self._socket: socket.socket | None = None
        self._has_engine = False

    def fileno(self) -> int:
        """Of what is readable once the engine has ended."""
        assert self._socket is not None
        return self._socket.fileno()

    def fork(self, theirs: Connection) -> None:
        """Has an engine forked that talks at `theirs`, the other end of a pipe. Returns at once: a server may still be
        importing."""
        descriptors = [theirs.fileno(), 1, 2]
        try:
            socket.send_fds(self._open(), [FORK], descriptors)
        except OSError:  # the server has ended since the last one
            self.close()
            socket.send_fds(self._open(), [FORK], descriptors)
        self._has_engine = True

    def how_it_ended(self) -> str:
        """Waits until the engine has ended, and says how."""
        told = b""
        with contextlib.suppress(OSError):
            told = self._open().recv(STATUS.size)
        self._has_engine = False
        if not told:
            self.close()
            return "the process that it was forked from has ended"
        code = os.waitstatus_to_exitcode(STATUS.unpack(told)[0])
        if code >= 0:
            return f"its process ended with {code}"
        with contextlib.suppress(ValueError):
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process was killed by signal {-code}"

    def kill(self) -> None:
        """Ends the engine and all that it started, if there is one, and waits for that."""
        if self._has_engine:
            line = self._open()
            line.settimeout(END_S)
            with contextlib.suppress(OSError):
                line.send(KILL)
            self.how_it_ended()
            line.settimeout(None)

    def close(self) -> None:
        """Ends the engine, and the server if it is the host's own."""
        if self._socket is not None:
            self._socket.close()
        if self._server is not None:
            _close(self._server)
        self._socket = self._server = None

    def _open(self) -> socket.socket:
        if self._socket is None and self._address is not None:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                line.connect(self._address)
                self._socket = line
            except OSError:  # its opener has ended
                line.close()
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = _opened(self._kind, self._environment, theirs, None)
        return self._socket


class _Server:
    """The server's side: a loop over its lines and the engines on them."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._lines: list[socket.socket] = []
        self._engines: dict[socket.socket, int] = {}

    def serve(self, end: socket.socket) -> None:
        """Serves the line `end`, or those that come in where it listens, until its opener ends or ends it."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
        self._selector.register(sys.stdin, selectors.EVENT_READ, sys.exit)
        listens = end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        self._watch(end, partial(self._accept if listens else self._hear, end))
        try:
            while True:
                for key, _ in self._selector.select():
                    key.data()
        finally:
            for pid in self._engines.values():
                _kill_group(pid)

    def _watch(self, line: socket.socket, act: Callable[[], None]) -> None:
        self._lines.append(line)
        self._selector.register(line, selectors.EVENT_READ, act)

    def _accept(self, listener: socket.socket) -> None:
        line, _ = listener.accept()
        self._watch(line, partial(self._hear, line))

    def _hear(self, line: socket.socket) -> None:
        message = b""
        descriptors: list[int] = []
        with contextlib.suppress(OSError):
            message, descriptors, _, _ = socket.recv_fds(line, 1, 3)
        if message == FORK:
            self._fork(line, descriptors)
            return
        if line in self._engines:
            _kill_group(self._engines[line])
        if not message:
            self._selector.unregister(line)
            self._lines.remove(line)
            line.close()

    def _fork(self, line: socket.socket, descriptors: list[int]) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_an_engine(server, *descriptors)
        with contextlib.suppress(OSError):  # its own doing too; whoever is first
            os.setpgid(pid, pid)
        for descriptor in descriptors:
            os.close(descriptor)
        self._engines[line] = pid
        ended = os.pidfd_open(pid)
        self._selector.register(ended, selectors.EVENT_READ, partial(self._bury, line, pid, ended))

    def _be_an_engine(self, server: int, connection: int, output: int, errors: int) -> NoReturn:
        status = 1
        try:
            end_with(server)
            be_called("herd-engine")
            os.setpgid(0, 0)  # so that it can be killed with the workers that it starts
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._selector.close()
            for line in self._lines:
                line.close()
            for here, there in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
                os.dup2(here, there)
                os.close(here)
            os.set_inheritable(connection, False)
            gc.enable()
            process.main(Connection(connection))
            status = 0
        except Exception:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _bury(self, line: socket.socket, pid: int, ended: int) -> None:
        self._selector.unregister(ended)
        os.close(ended)
        _kill_group(pid)  # what it leaves behind
        _, status = os.waitpid(pid, 0)
        del self._engines[line]
        with contextlib.suppress(OSError):  # the host is gone
            line.send(STATUS.pack(status))


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _import_what_engines_need(kind: str) -> None:
    """Once, and so that no garbage collector looks at it again, here or in a fork."""
    gc.disable()
    if kind != "echo":
        with contextlib.suppress(Exception):  # the engine will try for itself, and say what is wrong
            from pipeline.engine import vllm as adapter

            adapter.import_vllm()
    gc.freeze()


def main(fd: int, kind: str) -> None:
    os.set_inheritable(fd, False)
    be_called("herd-forks")
    _import_what_engines_need(kind)
    _Server().serve(socket.socket(fileno=fd))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
