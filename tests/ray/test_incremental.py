"""A job that is run again and again over a growing input, on a local folder and on two S3 servers."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import StorageConfig
from pipeline.storage import Store
from tests.conftest import REPOSITORY, S3, Herd, Outcome
from tests.ray.helpers import assert_ended


def parquet(name: str, rows: int = 10) -> bytes:
    out = pa.BufferOutputStream()
    ids = [f"{name}-{i}" for i in range(rows)]
    columns = {"id": pa.array(ids, pa.string()), "text": pa.array([f"question {i}" for i in ids], pa.string())}
    pq.write_table(pa.table(columns), out, row_group_size=5)
    return out.getvalue().to_pybytes()


class Place:
    """A folder with input files, and the job over them, wherever it is."""

    def __init__(self, uri: str, endpoint_url: str | None, jobs: Path) -> None:
        self.uri, self.root, self._jobs = uri, f"{uri}/out", jobs
        self.storage = {"endpoint_url": endpoint_url}
        self.store = Store(uri, StorageConfig(endpoint_url=endpoint_url))
        self.reach = ["--endpoint-url", endpoint_url] if endpoint_url else []

    def add(self, *names: str, rows: int = 10, salt: str = "") -> None:
        for name in names:
            self.store.put(f"{self.uri}/in/{name}.parquet", parquet(name + salt, rows))

    def job(self, **sections: Any) -> Path:
        job = {
            "name": "nightly",
            "input": {"uri": f"{self.uri}/in/*.parquet", "storage": self.storage, "incremental": True},
            "prompt": {"user": "{{ text }}"},
            "engine": {"kind": "echo"},
            "output": {"uri": self.root, "storage": self.storage},
            **sections,
        }
        path = self._jobs / f"job-{len(list(self._jobs.iterdir()))}.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def runs(self) -> dict[str, list[str]]:
        """The ids of all answered rows, by run."""
        names = self.store.list_folders(f"{self.root}/runs")
        found: dict[str, list[str]] = {}
        for name in names:
            parts = self.store.list_folder(f"{self.root}/runs/{name}/data")
            tables = [pq.read_table(pa.BufferReader(self.store.read(p.uri))) for p in parts]
            found[name] = sorted(i for t in tables for i in t["id"].to_pylist())
        return found

    def assert_whole(self, herd: Herd, *names: str, rows: int = 10) -> None:
        """Each row of these files was answered once, and `herd verify` says so."""
        every = Counter(i for ids in self.runs().values() for i in ids)
        assert every == Counter(f"{name}-{i}" for name in names for i in range(rows))
        outcome = herd("verify", self.root, *self.reach, "--json")
        verdict = json.loads(outcome.out)
        assert outcome.code == 0 and verdict["complete"], verdict
        assert verdict["files_claimed"] == len(names)


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return _place(f"{tmp_path}/data", None, tmp_path)


@pytest.fixture
def on_s3(s3: S3, tmp_path: Path) -> Place:
    return _place(f"s3://bucket/{tmp_path.name}", s3.endpoint_url, tmp_path)


def _place(uri: str, endpoint_url: str | None, tmp_path: Path) -> Place:
    (tmp_path / "jobs").mkdir()
    return Place(uri, endpoint_url, tmp_path / "jobs")


@pytest.fixture
def process() -> Iterator[Callable[[Path], "subprocess.Popen[str]"]]:
    """Starts `herd run JOB` as a process of its own, with a Ray of its own."""
    begun = []

    def start(job: Path) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "jobs", "run", str(job), "--json"]
        options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        begun.append(subprocess.Popen(command, cwd=REPOSITORY, **options))
        return begun[-1]

    yield start
    for one in begun:
        if one.poll() is None:
            os.killpg(one.pid, signal.SIGKILL)
        one.wait()


def runs_of(outcome: Outcome) -> list[dict[str, Any]]:
    return list(json.loads(outcome.out)["runs"])


def three_nights(place: Place, herd: Herd) -> None:
    job = place.job()
    place.add("a", "b")
    (first,) = runs_of(herd("run", job, "--json"))
    assert (first["name"], first["rows_ok"], first["exit_code"]) == ("000001", 20, 0)
    place.add("c")
    plan = json.loads(herd("plan", job, "--json").out)
    assert (plan["files_taken_before"], plan["num_files"], plan["num_rows"]) == (2, 1, 10)
    (second,) = runs_of(herd("run", job, "--json"))
    assert (second["name"], second["rows_ok"]) == ("000002", 10)
    place.add("a", salt="-new")  # replaced: a new file
    place.add("d")
    (third,) = runs_of(herd("run", job, "--json"))
    assert (third["name"], third["rows_ok"]) == ("000003", 20)
    place.assert_whole(herd, "a", "b", "c", "a-new", "d")

    nothing = herd("run", job)
    assert nothing.code == 0 and "Nothing to do: every file of the input was taken" in nothing.out
    assert place.store.list_folders(f"{place.root}/runs") == ["000001", "000002", "000003"]

    status = json.loads(herd("status", place.root, *place.reach, "--json").out)
    assert (status["runs"], status["runs_finished"], status["files"], status["rows_ok"]) == (3, 3, 5, 50)
    shown = json.loads(herd("show", place.root, *place.reach, "-n", "25", "--json").out)
    assert len(shown) == 25 and {r["id"].partition("-")[0] for r in shown[:20]} == {"a", "d"}
    assert shown[-1]["id"].startswith("c")
    resumed = herd("resume", place.root, *place.reach)
    assert resumed.code == 0 and "Every run is finished." in resumed.out


def test_three_nights_over_a_growing_input_do_each_file_once(local: Place, herd: Herd) -> None:
    three_nights(local, herd)


def test_three_nights_on_s3_do_each_file_once(on_s3: Place, herd: Herd) -> None:
    three_nights(on_s3, herd)


SLOW: dict[str, Any] = {
    "engine": {"kind": "echo", "max_num_seqs": 5, "echo": {"latency_s": 0.5}},
    "pool": {"shards_in_flight": 1},
    "limits": {"lease_s": 3},
}


def killed_half_way(place: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]) -> None:
    job = place.job(**SLOW)
    place.add("a", "b", "c", "d")
    night = process(job)
    commits = f"{place.root}/runs/000001/commits"
    deadline = time.monotonic() + 120
    while not place.store.list_folder(commits):
        assert night.poll() is None and time.monotonic() < deadline, night.communicate()[1]
        time.sleep(0.05)  # until the run, a process of its own, has committed something
    os.killpg(night.pid, signal.SIGKILL)
    night.wait()
    kept = {f.uri: f.etag for f in place.store.list_folder(commits)}
    assert 0 < len(kept) < 8
    assert herd("verify", place.root, *place.reach).code == 4
    place.add("e")
    first, second = runs_of(herd("run", place.job(), "--json"))
    assert (first["name"], first["rows_in"], second["name"], second["rows_in"]) == ("000001", 40, "000002", 10)
    assert {u: e for u, e in ((f.uri, f.etag) for f in place.store.list_folder(commits)) if u in kept} == kept
    place.assert_whole(herd, "a", "b", "c", "d", "e")


def test_run_killed_half_way_is_continued_by_the_next_night(
    local: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    killed_half_way(local, herd, process)


@pytest.mark.chaos
def test_run_killed_half_way_on_s3_is_continued_by_the_next_night(
    on_s3: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    killed_half_way(on_s3, herd, process)


def two_at_once(place: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]) -> None:
    place.add("a", "b", "c")
    nights = [process(place.job()) for _ in range(2)]
    said = [night.communicate(timeout=200) for night in nights]
    assert [night.returncode for night in nights] == [0, 0], said
    done = [run for out, _ in said for run in json.loads(out)["runs"] if run["note"] is None]
    assert {run["name"] for run in done} == {"000001"}
    assert list(place.runs()) == ["000001"]
    place.assert_whole(herd, "a", "b", "c")


@pytest.mark.chaos
def test_two_that_start_at_the_same_moment_do_each_file_once(
    local: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    two_at_once(local, herd, process)


@pytest.mark.chaos
def test_two_that_start_at_the_same_moment_on_s3_do_each_file_once(
    on_s3: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    two_at_once(on_s3, herd, process)


@contextlib.contextmanager
def kept_alive(lease: Path) -> Iterator[None]:
    """Renews a stopped session's lease for the time of the block."""
    holder, over = json.loads(lease.read_text()), threading.Event()

    def beat() -> None:
        while not over.wait(0.2):
            holder["beat"] += 1
            partial = lease.with_name(".beat.partial")
            partial.write_text(json.dumps(holder))
            partial.replace(lease)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.chaos
def test_run_beside_one_that_is_going_leaves_it_its_files(
    local: Place, herd: Herd, process: Callable[[Path], "subprocess.Popen[str]"]
) -> None:
    local.add("a", "b", "c", "d")
    night = process(local.job(**SLOW))
    deadline = time.monotonic() + 120
    while not local.store.exists(f"{local.root}/runs/000001/run.json"):
        assert night.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)  # until the run, a process of its own, has begun
    os.kill(night.pid, signal.SIGSTOP)  # it lives, and the test need not hurry
    try:
        local.add("e")
        with kept_alive(Path(local.root, "runs/000001/_lease.json")):
            outcome = herd("run", local.job(), "--json")
    finally:
        os.kill(night.pid, signal.SIGCONT)
    left, new = runs_of(outcome)
    assert outcome.code == 0
    assert left["note"].startswith("Left to the session that has it. Another session is writing this output: process")
    assert (new["name"], new["rows_ok"]) == ("000002", 10)
    night.communicate(timeout=120)
    herd("resume", local.root)
    local.assert_whole(herd, "a", "b", "c", "d", "e")


def test_claim_without_a_run_is_run_by_the_job_as_it_is_then(local: Place, herd: Herd) -> None:
    local.add("a")
    wrong = herd("run", local.job(prompt={"user": "{{ tekst }}"}))
    assert wrong.code == 2 and "Error: 000001: " in wrong.err and "`tekst`" in wrong.err
    assert not any(local.runs().values())
    (run,) = runs_of(herd("run", local.job(), "--json"))
    assert (run["name"], run["rows_ok"]) == ("000001", 10)
    local.assert_whole(herd, "a")


def test_resume_of_a_root_runs_a_claim_without_a_run(local: Place, herd: Herd) -> None:
    local.add("a")
    local.store.put(f"{local.uri}/in/bad.parquet", b"no parquet")
    refused = herd("run", local.job())
    assert refused.code == 2 and "This is not a Parquet file" in refused.err
    local.add("bad")  # mended, so it is a new file; the rest of the claim is run
    assert herd("resume", local.root).code == 0
    assert list(local.runs()) == ["000001"]
    assert herd("run", local.job()).code == 0
    local.assert_whole(herd, "a", "bad")


def test_run_whose_files_all_changed_starts_no_engine_and_new_files_are_done(local: Place, herd: Herd) -> None:
    local.add("a")
    assert herd("run", local.job()).code == 0
    local.store.remove(f"{local.root}/runs/000001/_SUCCESS")
    local.store.remove_folder(f"{local.root}/runs/000001/commits")  # as if it had been stopped before the first
    local.add("a", salt="-new")
    outcome = herd("run", local.job(), "--json")
    stuck, new = runs_of(outcome)
    assert outcome.code == 4
    assert "none is what it was when it was planned" in stuck["error"] and "claims/000001.json" in stuck["error"]
    assert (new["name"], new["rows_ok"]) == ("000002", 10)


def test_files_without_rows_are_taken_and_proven(local: Place, herd: Herd) -> None:
    local.add("a")
    local.add("empty", rows=0)
    assert herd("run", local.job()).code == 0
    local.add("empty-too", rows=0)
    assert herd("run", local.job()).code == 0
    verdict = json.loads(herd("verify", local.root, "--json").out)
    assert (verdict["complete"], verdict["runs"], verdict["files_claimed"], verdict["rows_ok"]) == (True, 2, 3, 10)


def test_verify_of_a_root_sees_a_file_that_two_runs_took(local: Place, herd: Herd) -> None:
    local.add("a")
    assert herd("run", local.job()).code == 0
    claims = Path(local.root, "claims")
    (claims / "000002.json").write_bytes((claims / "000001.json").read_bytes())
    outcome = herd("verify", local.root, "--json")
    problems = json.loads(outcome.out)["problems"]
    assert outcome.code == 4
    assert any("is claimed by 2 runs" in p for p in problems) and any("is not begun" in p for p in problems)
    (claims / "000002.json").unlink()
    (claims / "000001.json").unlink()
    (claims / "000003.json").write_text(json.dumps({"config": {}, "files": []}))
    assert "run 000001 has no claim" in json.loads(herd("verify", local.root, "--json").out)["problems"]


def test_output_that_holds_a_plain_run_is_refused_by_an_incremental_job_and_the_other_way_round(
    local: Place, herd: Herd
) -> None:
    local.add("a")
    plain = {"uri": f"{local.uri}/in/*.parquet"}
    assert herd("run", local.job(input=plain, output={"uri": f"{local.uri}/plain"})).code == 0
    assert_ended(
        herd("run", local.job(output={"uri": f"{local.uri}/plain"})), 2, "a run of a job that was not incremental"
    )
    assert herd("run", local.job()).code == 0
    assert_ended(herd("run", local.job(input=plain)), 2, "files that are not a run's")
    assert_ended(herd("replay", local.root), 2, "herd replay", "/runs/000001")


def test_input_that_never_had_a_file_is_refused_and_one_that_has_none_left_is_not(local: Place, herd: Herd) -> None:
    job = local.job()
    assert_ended(herd("run", job), 2, "No file matches this pattern")
    local.add("a")
    assert herd("run", job).code == 0
    local.store.remove(f"{local.uri}/in/a.parquet")
    assert herd("run", job).code == 0


def test_incremental_job_that_chooses_its_engine_is_refused(local: Place, herd: Herd) -> None:
    local.add("a")
    assert_ended(herd("run", local.job(engine="auto", model="maverick")), 2, "`engine: auto` chooses for one run")
