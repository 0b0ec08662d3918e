"""Whole runs whose storage has faults, and sessions that meet on one output: on two S3 servers, through a proxy."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from tests import fault_proxy as faults
from tests.conftest import REPOSITORY, S3, Herd
from tests.fault_proxy import FaultProxy, Forward, Got, Reply, proxied
from tests.ray.helpers import assert_ended

NUM_SHARDS, ROWS_A_SHARD = 6, 10
NUM_ROWS = NUM_SHARDS * ROWS_A_SHARD

one_server = pytest.mark.parametrize("s3", ["moto"], indirect=True)
both_servers = pytest.mark.parametrize("s3", ["moto", pytest.param("rclone", marks=pytest.mark.chaos)], indirect=True)


@dataclass(frozen=True)
class Site:
    """A job on a server behind a proxy, in a folder of its own: `in/` has its rows, `out/` is the run's."""

    proxy: FaultProxy
    server: S3
    folder: str
    job: Path

    @property
    def fs(self) -> Any:
        """The server itself, without the proxy."""
        return s3fs.S3FileSystem(
            endpoint_url=self.server.endpoint_url, use_listings_cache=False, skip_instance_cache=True
        )

    @property
    def out(self) -> list[str]:
        """The output as commands take it, through the proxy."""
        return [f"s3://{self.folder}/out", "--endpoint-url", self.proxy.endpoint_url]

    def files(self, name: str) -> dict[str, bytes]:
        fs = self.fs
        return {path.rsplit("/", 1)[-1]: fs.cat_file(path) for path in sorted(fs.find(f"{self.folder}/out/{name}"))}

    def write_job(self, **sections: Any) -> Path:
        storage = {"endpoint_url": self.proxy.endpoint_url}
        job = {
            "name": "faults",
            "input": {"uri": f"s3://{self.folder}/in/*.parquet", "storage": storage},
            "prompt": {"user": "{{ text }}"},
            "engine": {"kind": "echo"},
            "output": {"uri": f"s3://{self.folder}/out", "storage": storage},
            **sections,
        }
        self.job.write_text(yaml.safe_dump(job))
        return self.job

    def assert_complete(self, herd: Herd) -> None:
        """Each row is answered once, and the run's own proof says so."""
        rows = [r for data in self.files("data").values() for r in pq.read_table(pa.BufferReader(data)).to_pylist()]
        assert [r["id"] for r in rows] == [f"row-{i:05d}" for i in range(NUM_ROWS)]
        assert all(r["response"] == r["text"] == f"question {r['id'][4:]}" for r in rows)
        outcome = herd("verify", *self.out, "--json")
        assert (outcome.code, json.loads(outcome.out)["problems"]) == (0, [])


@pytest.fixture
def site(s3: S3, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with proxied(s3.endpoint_url, seed=7) as proxy:
        site = Site(proxy, s3, f"bucket/{tmp_path.name}-{s3.kind}", tmp_path / "job.yaml")
        ids = [f"row-{i:05d}" for i in range(NUM_ROWS)]
        table = pa.table({"id": ids, "text": [f"question {i[4:]}" for i in ids]})
        fs = site.fs
        for n in range(2):
            sink = pa.BufferOutputStream()
            part = table.slice(n * NUM_ROWS // 2, NUM_ROWS // 2)
            pq.write_table(part, sink, row_group_size=ROWS_A_SHARD, write_page_checksum=True)
            fs.pipe_file(f"{site.folder}/in/part-{n}.parquet", bytes(sink.getvalue()))
        site.write_job()
        yield site


# --- faults of the store


@both_servers
def test_run_in_which_one_request_of_seven_has_a_fault_completes(site: Site, herd: Herd) -> None:
    kinds = [faults.SLOW_DOWN, faults.INTERNAL_ERROR, faults.reset_before, faults.reset_after, faults.truncate]
    for act in kinds:
        site.proxy.add(act, rate=0.03, times=None)
    assert herd("run", site.job).code == 0
    seen = site.proxy.seen()
    assert sum(s.has_fault for s in seen) > len(seen) / 20
    site.proxy.heal()
    site.assert_complete(herd)


@pytest.mark.chaos
@one_server
def test_run_whose_credentials_expire_for_a_moment_completes(site: Site, herd: Herd) -> None:
    for method in ("HEAD", "GET", "PUT"):
        site.proxy.add(faults.EXPIRED_TOKEN, method=method, key="/out/(data|commits)", times=2)
    assert herd("run", site.job).code == 0
    assert sum(s.has_fault for s in site.proxy.seen()) >= 4
    site.assert_complete(herd)


@pytest.mark.chaos
@both_servers
def test_run_whose_store_fails_half_way_ends_with_the_cause_and_is_resumed(site: Site, herd: Herd) -> None:
    async def last_commit(proxy: FaultProxy, got: Got, forward: Forward) -> Reply:
        reply = await forward()
        proxy.add(faults.INTERNAL_ERROR, key="/out/", times=None)
        return reply

    storage = {"endpoint_url": site.proxy.endpoint_url, "retry_s": 1}
    job = site.write_job(
        output={"uri": f"s3://{site.folder}/out", "storage": storage},
        limits={"lease_s": 3},
        pool={"shards_in_flight": 1},
    )
    site.proxy.add(last_commit, method="PUT", key="/commits/", skip=1)
    outcome = herd("run", job)
    assert_ended(outcome, 4, "The store failed: ", "nternal", f"s3://{site.folder}/out")  # a bare 500 says it with an I
    kept = {name: data for name, data in site.files("commits").items() if b"rows_in" in data}  # and no mere claims
    assert 0 < len(kept) < NUM_SHARDS

    site.proxy.heal()
    assert herd("resume", *site.out).code == 0
    assert {name: data for name, data in site.files("commits").items() if name in kept} == kept
    site.assert_complete(herd)


@one_server
@pytest.mark.parametrize(
    ("method", "kind", "skip"),
    [("GET", "in", 3), ("PUT", "out/data", 2), ("PUT", "out/commits", 2)],  # planning reads three footers
)
def test_run_that_may_not_read_or_write_says_so(site: Site, herd: Herd, method: str, kind: str, skip: int) -> None:
    """Wherever in the cluster it was refused."""
    asked = f"{site.folder}/{kind}/"
    site.proxy.add(faults.ACCESS_DENIED, method=method, key=asked, skip=skip, times=None)
    ended = herd("run", site.job)
    assert_ended(ended, 4, "The store refuses access: Access Denied", f"s3://{asked}", f"herd resume {site.out[0]}")


@pytest.mark.chaos
@one_server
def test_run_whose_listings_lag_completes_and_a_second_one_does_nothing_again(site: Site, herd: Herd) -> None:
    rule = site.proxy.add(faults.stale_list(3600), query="list-type=", times=None)
    assert herd("run", site.job).code == 0
    assert rule.taken
    before = site.files("commits")
    assert len(before) == NUM_SHARDS
    assert herd("run", site.job).code == 0
    assert site.files("commits") == before
    site.proxy.heal()
    site.assert_complete(herd)


# --- two sessions on one output


class Session:
    """`herd run` in a process of its own, with a Ray of its own."""

    def __init__(self, job: Path) -> None:
        command = [sys.executable, "-m", "jobs", "run", str(job)]
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        )
        self.pid = self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """To the process and all that came of it, the parents first."""
        root = psutil.Process(self.pid)
        for process in [root, *root.children(recursive=True)]:
            process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """The exit status and what was said, once it ends."""
        _, said = self._process.communicate(timeout=200)
        return self._process.returncode, said

    def kill(self) -> None:
        if self.is_running:
            for process in psutil.Process(self.pid).children(recursive=True):
                process.kill()
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[[Path], Session]]:
    sessions: list[Session] = []

    def begin(job: Path) -> Session:
        sessions.append(Session(job))
        return sessions[-1]

    yield begin
    for session in sessions:
        session.kill()


def until(session: Session, is_so: Callable[[], bool]) -> None:
    """Waits for something that another process does to the store."""
    deadline = time.monotonic() + 200
    while not is_so():
        assert session.is_running, session.end()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_refused(site: Site, herd: Herd, job: Path, session: Session) -> None:
    """A second session ends, and names the first: the process that drives it, below its guard."""
    (driver,) = psutil.Process(session.pid).children()
    named = f"process {driver.pid} on {socket.gethostname()}"
    assert_ended(herd("run", job), 4, "Another session is writing this output", named, f"s3://{site.folder}/out")


def slow(site: Site, lease_s: float) -> Path:
    """A job of which each shard takes a second or so."""
    engine = {"kind": "echo", "max_num_seqs": ROWS_A_SHARD, "echo": {"latency_s": 1.0}}
    return site.write_job(engine=engine, pool={"shards_in_flight": 1}, limits={"lease_s": lease_s})


@pytest.mark.chaos
@one_server
def test_second_session_on_an_output_is_refused_and_the_first_completes(
    site: Site, herd: Herd, start: Callable[[Path], Session]
) -> None:
    job = slow(site, 20)
    first = start(job)
    until(first, lambda: bool(site.proxy.seen("PUT", "/out/run.json")))
    assert_refused(site, herd, job, first)
    assert first.end()[0] == 0
    site.assert_complete(herd)
    assert "_lease.json" not in site.files("")


@pytest.mark.chaos
@both_servers
def test_session_that_is_stopped_is_overtaken_and_says_so_when_it_wakes(
    site: Site, herd: Herd, start: Callable[[Path], Session]
) -> None:
    job = slow(site, 6)
    held = threading.Event()

    async def hold(proxy: FaultProxy, got: Got, forward: Forward) -> Reply:
        """A request of the stopped session that arrives when all is done."""
        healed = proxy.healed
        held.set()
        await healed.wait()
        return await forward()

    is_conditional = site.server.kind == "moto"
    if is_conditional:
        site.proxy.add(hold, method="PUT", key="/out/data/part-", skip=2)
    first = start(job)
    until(first, held.is_set if is_conditional else lambda: len(site.proxy.seen("PUT", "/out/commits/")) >= 2)
    first.signal(signal.SIGSTOP)
    assert herd("resume", *site.out).code == 0
    site.assert_complete(herd)
    written = site.files("")

    first.signal(signal.SIGCONT)
    site.proxy.heal()
    code, said = first.end()
    assert code == 4
    assert "This session has lost its output" in said
    assert "Traceback" not in said
    site.assert_complete(herd)
    assert site.files("") == written
