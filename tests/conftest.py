"""What tests share: the command run in this process, and real S3 servers that no one here wrote."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from jobs import cli

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO = REPOSITORY / "jobs" / "demo"
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "herd-test-key",
    "AWS_SECRET_ACCESS_KEY": "herd-test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
}


class OneWorkerForVllm(LoadFileScheduling):
    """With several workers, the tests of a file stay together, and all that run vLLM have one worker: engines that step at
    the same time on the same cores stall each other."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneWorkerForVllm:
    return OneWorkerForVllm(config, log)


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Herd = Callable[..., Outcome]


@pytest.fixture
def herd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Herd:
    """Runs `herd ARGS...` in this process, in the Ray cluster that is connected, if one is."""

    def run(*args: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["herd", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = int(e.code or 0)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return run


@dataclass(frozen=True)
class S3:
    """A running S3 server. Its credentials are in the environment while it runs."""

    endpoint_url: str
    kind: str

    def storage(self) -> dict[str, str]:
        return {"endpoint_url": self.endpoint_url}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            urllib.request.urlopen(url, timeout=2)
            return
        except urllib.error.HTTPError:
            return  # it answers, if only to say that anonymous requests are not welcome
        except OSError:
            time.sleep(0.1)  # a server that is starting gives no event to wait for
    raise TimeoutError(url)


@pytest.fixture(scope="session", params=["moto", "rclone"])
def s3(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Each of two servers with an empty bucket `bucket`: moto (honours conditional puts) and rclone (a folder)."""
    port = _free_port()
    binaries = Path(sys.executable).parent
    if request.param == "moto":
        command = [str(binaries / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    else:
        root = tmp_path_factory.mktemp("rclone")
        keys = ["--auth-key", "herd-test-key,herd-test-secret"]
        command = [str(binaries / "rclone"), "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}", *keys]
    before = {k: os.environ.get(k) for k in S3_ENVIRONMENT}
    os.environ.update(S3_ENVIRONMENT)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server = S3(f"http://127.0.0.1:{port}", request.param)
        _wait_for(server.endpoint_url, process)
        import s3fs

        s3fs.S3FileSystem(endpoint_url=server.endpoint_url, skip_instance_cache=True).mkdir("bucket")
        yield server
    finally:
        process.terminate()
        process.wait(timeout=20)
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
