"""Stopping a run by hand: what is committed stays, and the command says how to go on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Herd


@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)])
def test_run_that_is_interrupted_says_how_to_resume_and_resumes(
    sent: signal.Signals, tmp_path: Path, herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path]
) -> None:
    write_input(80, rows_per_group=8)
    engine = {"kind": "echo", "max_num_seqs": 8, "echo": {"latency_s": 0.5}}
    job = write_job(engine=engine, pool={"shards_in_flight": 1})
    command = [sys.executable, "-m", "jobs", "run", str(job)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    commits = tmp_path / "out" / "commits"
    deadline = time.monotonic() + 120
    while not (commits.is_dir() and list(commits.glob("*.json"))):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)  # until the run, a process of its own, has committed something
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"herd resume {tmp_path / 'out'}" in said
    kept = {p.name: p.read_bytes() for p in commits.glob("*.json")}
    assert 0 < len(kept) < 10

    assert herd("verify", tmp_path / "out").code == 4
    assert herd("resume", tmp_path / "out").code == 0
    verdict = json.loads(herd("verify", tmp_path / "out", "--json").out)
    assert verdict["complete"] and verdict["rows_ok"] == 80
    assert all((commits / name).read_bytes() == data for name, data in kept.items())
