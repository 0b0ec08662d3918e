"""Runs that must find their own way: rows that kill or hang engines, jobs that are wrong, stops, and second thoughts."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Herd
from tests.ray.helpers import assert_ended, commits, failures, rows_of

Write = Callable[..., Path]


def verdict(herd: Herd, out: Path) -> dict[str, Any]:
    return dict(json.loads(herd("verify", out, "--json").out))


def session(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "run.json").read_text())["sessions"][-1])


def test_run_with_one_poison_row_in_5000_quarantines_it_within_five_deaths(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_input(5000, rows_per_group=512)
    engine = {"kind": "echo", "echo": {"die_on": "number 2345$"}}
    assert herd("run", write_job(engine=engine, pool={"min": 2})).code == 0
    found = verdict(herd, out)
    assert (found["complete"], found["rows_ok"], found["rows_quarantined"]) == (True, 4999, 1)
    assert failures(out) == {"row-02345": "engine/engine_death"}
    (bad,) = rows_of(out, "quarantine")
    assert bad["attempts"] == bad["lineage"]["attempt"] == 2
    assert "killed by SIGKILL" in bad["message"]
    assert 2 <= session(out)["engine_deaths"] <= 5
    (shard,) = [r for r in commits(out).values() if r["rows_quarantined"]]
    assert (bad["lineage"]["row"], 1) in {(h["row"], h["attempt"]) for h in shard["history"]}


def test_run_with_poison_and_hanging_rows_in_several_shards_answers_all_others(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_input(120)
    job = write_job(
        engine={"kind": "echo", "echo": {"die_on": "number (13|14|77)$", "hang_on": "number 41$"}},
        limits={"max_quarantined_fraction": 0.1, "stall_s": 3},
    )
    assert herd("run", job).code == 0
    assert failures(out) == {
        "row-00013": "engine/engine_death",
        "row-00014": "engine/engine_death",
        "row-00041": "engine/engine_stall",
        "row-00077": "engine/engine_death",
    }
    assert verdict(herd, out)["complete"]
    assert [r["id"] for r in rows_of(out)] == [f"row-{i:05d}" for i in range(120) if i not in (13, 14, 41, 77)]
    assert any("hung" in event for event in session(out)["events"])


def test_run_on_a_machine_that_kills_every_engine_ends_with_the_reason(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(40)
    job = write_job(engine={"kind": "echo", "echo": {"die_on": "question"}}, limits={"max_engine_restarts": 3})
    assert_ended(herd("run", job), 4, "died 3 times in a row", "SIGKILL", f"herd resume {tmp_path / 'out'}")
    assert commits(tmp_path / "out") == {}
    assert session(tmp_path / "out")["engine_deaths"] == 3
    assert not (tmp_path / "out/_lease.json").exists()


def test_run_of_a_wrong_job_ends_early_with_the_reasons_and_keeps_what_is_done(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_input(400, rows_per_group=20)
    job = write_job(
        engine={"kind": "echo", "max_num_seqs": 10, "echo": {"fail_on": "question", "latency_s": 0.2}},
        limits={"min_sample_rows": 60},
        pool={"shards_in_flight": 1},
    )
    ended = herd("run", job)
    assert_ended(
        ended, 3, "rows are quarantined", "x engine/echo_fail_on (part-0.parquet, row group 0, row 0:", str(out)
    )
    kept = commits(out)
    assert 3 <= len(kept) < 20
    assert not (out / "_SUCCESS").exists()
    assert "quarantined" in session(out)["ended_by"]
    assert herd("resume", out, "--set", "limits.max_quarantined_fraction=1").code == 0
    assert {s: r for s, r in commits(out).items() if s in kept} == kept
    assert verdict(herd, out)["rows_quarantined"] == 400


def test_run_with_an_absolute_limit_ends_with_3_above_it(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(40)
    limits = {"max_quarantined_fraction": 1, "max_quarantined_rows": 3}
    job = write_job(engine={"kind": "echo", "echo": {"fail_on": "7$"}}, limits=limits)
    assert herd("run", job).code == 3
    assert herd("resume", tmp_path / "out", "--set", "limits.max_quarantined_rows=4").code == 0


def test_resume_with_a_setting_that_changes_answers_is_refused(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(20)
    herd("run", write_job())
    ended = herd("resume", tmp_path / "out", "--set", "prompt.user=otherwise {{ text }}")
    assert_ended(ended, 2, "prompt.user", "herd replay --set")
    assert_ended(herd("resume", tmp_path / "out", "--set", "output.uri=elsewhere"), 2, "output.uri")


def test_replay_with_changed_settings_asks_otherwise_and_keeps_the_history(
    herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_input(40)
    engine = {"kind": "echo", "echo": {"fail_on": "number [37]$"}}
    assert herd("run", write_job(engine=engine, limits={"max_quarantined_fraction": 1})).code == 0
    assert set(failures(out)) == {"row-00003", "row-00007"}
    before = {r["id"]: r for r in rows_of(out)}
    assert herd("replay", out, "--set", "prompt.user=please: {{ text }}!").code == 0
    after = {r["id"]: r for r in rows_of(out)}
    assert {k: after[k] for k in before} == before
    assert {after[k]["response"] for k in ("row-00003", "row-00007")} == {
        "please: question number 3!",
        "please: question number 7!",
    }
    assert {after[k]["lineage"]["attempt"] for k in ("row-00003", "row-00007")} == {2}
    found = verdict(herd, out)
    assert (found["complete"], found["rows_ok"], found["rows_quarantined"]) == (True, 40, 0)
    past = [h for record in commits(out).values() for h in record["history"]]
    assert {(h["row"], h["attempt"], h["stage"], h["error_type"]) for h in past} == {
        (3, 1, "engine", "echo_fail_on"),
        (7, 1, "engine", "echo_fail_on"),
    }
    (changed,) = session(out)["changed"]
    assert changed.startswith("prompt.user: ")


@pytest.mark.parametrize("key", ["input.carry=[id]", "shard.max_rows=7", "answer.json_schema={type: integer}"])
def test_replay_that_would_change_what_comes_in_or_out_is_refused(
    key: str, herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(20)
    engine = {"kind": "echo", "echo": {"fail_on": "number 3$"}}
    herd("run", write_job(engine=engine, limits={"max_quarantined_fraction": 1}))
    assert_ended(herd("replay", tmp_path / "out", "--set", key), 2, "A replay cannot change", key.split(".")[0])
    assert (tmp_path / "out/_SUCCESS").exists()


@pytest.mark.parametrize(("drain_s", "kept"), [(60, True), pytest.param(0, False, marks=pytest.mark.chaos)])
def test_run_that_is_stopped_commits_the_shards_in_flight_within_its_time(
    drain_s: float, kept: bool, herd: Herd, write_input: Write, write_job: Write, tmp_path: Path
) -> None:
    write_input(32, rows_per_group=16, num_files=1)
    job = write_job(
        # each shard takes eight answers of 0.5 s one after the other, and only the first begins
        engine={"kind": "echo", "max_num_seqs": 2, "echo": {"latency_s": 0.5}},
        pool={"shards_in_flight": 1},
        limits={"drain_s": drain_s},
    )
    command = [sys.executable, "-m", "jobs", "run", str(job)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    deadline = time.monotonic() + 150
    for line in process.stderr:  # until it says that an engine is at work
        if "rows/s" in line:
            break
        assert time.monotonic() < deadline
    time.sleep(1.0)  # an engine is ready; its first shard has begun too by now
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said and "herd resume" in said
    assert (len(commits(tmp_path / "out")) == 1) is kept
    assert not (tmp_path / "out/_lease.json").exists()
    assert herd("resume", tmp_path / "out").code == 0
    assert verdict(herd, tmp_path / "out")["complete"]
