"""Incremental jobs over input that grows: each file is answered once, whatever became of earlier runs."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml

from tests.conftest import REPOSITORY, S3, Herd
from tests.ray.helpers import assert_ended

ROWS = 30


class Job:
    """An incremental job with its input and root in one store, `store` being its fsspec file system."""

    def __init__(self, folder: Path, store: Any, base: str, storage: dict[str, Any]) -> None:
        self._store, self._base, self._is_s3 = store, base, bool(storage)
        self.root = self._uri("out")
        self.arguments = [self.root, *(["--endpoint-url", storage["endpoint_url"]] if storage else [])]
        self.path = folder / "job.yaml"
        self._job = {
            "name": "growing",
            "input": {"uri": self._uri("in/*.parquet"), "incremental": True, "storage": storage},
            "prompt": {"user": "{{ text }}"},
            "engine": {"kind": "echo"},
            "limits": {"lease_s": 4},
            "shard": {"max_rows": 10},
            "output": {"uri": self.root, "storage": storage},
        }
        self.write()

    def _uri(self, name: str) -> str:
        return f"s3://{self._base}/{name}" if self._is_s3 else f"{self._base}/{name}"

    def write(self, **sections: Any) -> None:
        self.path.write_text(yaml.safe_dump({**self._job, **sections}))

    def add(self, *names: str) -> None:
        for name in names:
            sink = io.BytesIO()
            pq.write_table(pa.table({"text": [f"{name} {i}" for i in range(ROWS)]}), sink)
            if not self._is_s3:
                self._store.makedirs(f"{self._base}/in", exist_ok=True)
            self._store.pipe_file(f"{self._base}/in/{name}.parquet", sink.getvalue())

    def answers(self) -> list[str]:
        """All responses below the root, in no order."""
        parts = [p for p in self._store.find(f"{self._base}/out/runs") if "/data/" in p and p.endswith(".parquet")]
        return [r for p in parts for r in pq.read_table(io.BytesIO(self._store.cat_file(p)))["response"].to_pylist()]

    def claims(self) -> list[str]:
        return sorted(p.rsplit("/", 1)[-1] for p in self._store.find(f"{self._base}/out/claims"))

    def assert_each_once(self, herd: Herd, *names: str) -> None:
        assert sorted(self.answers()) == sorted(f"{name} {i}" for name in names for i in range(ROWS))
        verified = herd("verify", *self.arguments, "--json")
        assert verified.code == 0 and json.loads(verified.out)["complete"], verified


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path, fsspec.filesystem("file", auto_mkdir=True), str(tmp_path / "site"), {})


@pytest.fixture
def job_on_s3(tmp_path: Path, s3: S3) -> Job:
    """On each of the two S3 servers."""
    store = s3fs.S3FileSystem(endpoint_url=s3.endpoint_url, use_listings_cache=False, skip_instance_cache=True)
    return Job(tmp_path, store, f"bucket/{tmp_path.name}", s3.storage())


def run_again_and_again(job: Job, herd: Herd) -> None:
    job.add("a", "b")
    assert herd("run", job.path).code == 0
    job.assert_each_once(herd, "a", "b")
    again = herd("run", job.path)
    assert again.code == 0 and "Nothing to do" in again.out + again.err
    assert job.claims() == ["000001.json"]
    job.add("c")
    assert herd("run", job.path).code == 0
    job.assert_each_once(herd, "a", "b", "c")
    job.add("d", "e")
    assert herd("run", job.path).code == 0
    job.assert_each_once(herd, "a", "b", "c", "d", "e")
    assert job.claims() == ["000001.json", "000002.json", "000003.json"]


def test_incremental_job_run_again_and_again_answers_each_file_once(job: Job, herd: Herd) -> None:
    run_again_and_again(job, herd)


def test_incremental_job_on_s3_run_again_and_again_answers_each_file_once(job_on_s3: Job, herd: Herd) -> None:
    run_again_and_again(job_on_s3, herd)


def start(job: Job) -> "subprocess.Popen[str]":
    """The same command in a process of its own, with a Ray of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "jobs", "run", str(job.path), "--no-preflight"]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_incremental_job_finishes_a_killed_run_and_takes_what_is_new(job: Job, herd: Herd) -> None:
    job.add("a", "b")
    job.write(engine={"kind": "echo", "max_num_seqs": 10, "echo": {"latency_s": 1.0}}, pool={"shards_in_flight": 1})
    killed = start(job)
    deadline = time.monotonic() + 200
    while not job.answers():
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()
        time.sleep(0.1)  # another process gives no event to wait for
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert len(job.answers()) < 2 * ROWS
    job.write()
    job.add("c")
    assert herd("run", job.path).code == 0
    job.assert_each_once(herd, "a", "b", "c")
    assert job.claims() == ["000001.json", "000002.json"]


def start_twice_at_once(job: Job, herd: Herd) -> None:
    job.add("a", "b")
    one, other = start(job), start(job)
    ended = [process.communicate(timeout=250)[0] for process in (one, other)]
    assert {one.returncode, other.returncode} <= {0, 4}, ended  # one may have found the other at work, and said so
    assert 0 in {one.returncode, other.returncode}, ended
    assert herd("run", job.path).code == 0
    job.assert_each_once(herd, "a", "b")


def test_incremental_job_started_twice_at_once_takes_no_file_twice(job: Job, herd: Herd) -> None:
    start_twice_at_once(job, herd)


def test_incremental_job_on_s3_started_twice_at_once_takes_no_file_twice(job_on_s3: Job, herd: Herd) -> None:
    start_twice_at_once(job_on_s3, herd)


def test_incremental_job_that_chooses_its_engine_is_refused(job: Job, herd: Herd) -> None:
    job.add("a")
    job.write(engine="auto", model="maverick")
    assert_ended(herd("run", job.path), 2, "`engine: auto` chooses for one run")
