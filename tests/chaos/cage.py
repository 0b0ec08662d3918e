"""Starts processes that are going to be killed, finds what they have started in their turn, and leaves none behind."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.fate import PR_SET_PDEATHSIG
from tests.conftest import REPOSITORY, S3_ENVIRONMENT

INJECT = Path(__file__).parent / "inject"
DEADLINE_S = 600.0
PATIENT_RAY = {
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Ray's own deadlines for start-up, for a machine with more to do than cores."""

ENGINE_ACTOR, ENGINE, LEDGER, READER = (
    "MapWorker(MapBatches(EngineActor))",
    "herd-engine",
    "Ledger",
    "ReadShards",
)


def wait_until(what: str, met: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """What `met` gives once it is true. Processes of others give no event to wait for."""
    deadline = time.monotonic() + deadline_s
    while not (found := met()):
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.05)
    return found


def _end_with_us() -> None:
    """Has the kernel kill a child when the tests' own process is killed, which runs no clean-up."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Command:
    """A `herd` command under way."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the command has not ended in {timeout_s:g} s: {self.said}") from None


class Cage:
    """Processes in sessions of their own, with a folder that tells `inject/sitecustomize.py` what to do."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        (folder / "fired").mkdir(parents=True)
        self._leaders: dict[int, subprocess.Popen[bytes]] = {}
        self._logs = 0
        self._plans = 0
        self.environment = {
            **os.environ,
            **S3_ENVIRONMENT,
            **PATIENT_RAY,
            "PYTHONPATH": os.pathsep.join([str(INJECT), str(REPOSITORY)]),
            "HERD_CHAOS": str(folder),
            **(environment or {}),
        }

    def start(self, *command: str, **options: Any) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=REPOSITORY,
            env=self.environment,
            start_new_session=True,
            preexec_fn=_end_with_us,
            **options,
        )
        self._leaders[process.pid] = process
        return process

    def herd(self, *arguments: object) -> Command:
        """`herd ARGUMENTS...`, started."""
        self._logs += 1
        log = self.folder / f"herd-{self._logs}.log"
        with log.open("wb") as out:
            process = self.start("jobs", *map(str, arguments), stdout=out, stderr=subprocess.STDOUT)
        return Command(process, log)

    def plan(self, points: Sequence[tuple[str, str, int | None]], act: str = "kill") -> list[str]:
        """Has these points (moment, object, shard) hit, once each, in place of what was planned before. Gives the ids."""
        self._plans += 1
        faults = [
            {"id": f"{self._plans}-{n}", "moment": moment, "object": name, "shard": shard, "act": act}
            for n, (moment, name, shard) in enumerate(points)
        ]
        partial = self.folder / "faults.partial"
        partial.write_text(json.dumps(faults))
        partial.replace(self.folder / "faults.json")
        return [str(fault["id"]) for fault in faults]

    def note(self, kind: str) -> None:
        """Writes down a fault that was injected from outside."""
        with (self.folder / "injected.jsonl").open("a") as f:
            f.write(json.dumps({"kind": kind}) + "\n")

    def injected(self) -> list[dict[str, Any]]:
        """Every fault so far, in order."""
        path = self.folder / "injected.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self) -> list[psutil.Process]:
        """All that runs in the sessions of what was started here, and engines, which have sessions of their own."""
        out = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                is_ours = os.getsid(process.pid) in self._leaders or self._is_marked(process)
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    out.append(process)
        return out

    def _is_marked(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return bool(process.environ().get("HERD_CHAOS") == str(self.folder))
        return False

    def find(self, what: str) -> list[psutil.Process]:
        """Processes with this in their name, command line or title, the longest-lived first."""
        out = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if what in " ".join([process.name(), *process.cmdline()]):
                    out.append((process.create_time(), process.pid, process))
        return [process for *_, process in sorted(out)]

    def kill_one(self, kind: str, what: str, of: Command) -> None:
        """Kills the longest-lived process with this in its title, as soon as there is one."""

        def killed() -> bool:
            assert of.code is None, f"the command ended before {kind}: {of.said}"
            for process in self.find(what):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
                    return True
            return False

        wait_until(kind, killed)
        self.note(kind)

    def end(self) -> None:
        """Kills all that is left."""
        deadline = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)
        for leader in self._leaders.values():
            leader.wait(timeout=20)
        assert not left, left


class Nodes:
    """A Ray cluster in a cage."""

    def __init__(self, cage: Cage, *nodes: dict[str, Any]) -> None:
        with (cage.folder / "nodes.log").open("ab") as log:
            self._process = cage.start(
                "tests.chaos.nodes", json.dumps(nodes), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._log = cage.folder / "nodes.log"
        self.nodes = [self._read() for _ in nodes]
        self.address = str(self.nodes[0]["address"])

    def add(self, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self._process.stdin.flush()
        self.nodes.append(self._read())
        return self.nodes[-1]

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._log.read_text()
        return dict(json.loads(line))
