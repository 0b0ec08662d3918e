"""Whole runs on local storage: what comes out, what a second command makes of it, and how a run fails."""

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml

from tests.conftest import Herd
from tests.ray.helpers import assert_ended, commits, failures, png, rows_of, write_rows

NUM_ROWS, NUM_SHARDS = 100, 6
FAILED = ["row-00007", "row-00017", "row-00027", "row-00037", "row-00047", "row-00057", "row-00067", "row-00077"]
FAILED += ["row-00087", "row-00097"]
LINEAGE = {
    "run_id": pa.string(),
    "shard": pa.int32(),
    "input_uri": pa.string(),
    "input_etag": pa.string(),
    "row_group": pa.int32(),
    "row": pa.int64(),
    "request_sha256": pa.string(),
    "model": pa.string(),
    "weights_digest": pa.string(),
    "sampling_sha256": pa.string(),
    "engine": pa.string(),
    "attempt": pa.int32(),
    "created_at": pa.timestamp("us", tz="UTC"),
    "cached_from": pa.string(),
}


def test_run_of_plain_rows_answers_every_row_in_input_order(finished: Path) -> None:
    rows = rows_of(finished / "out")
    expected = [f"row-{i:05d}" for i in range(NUM_ROWS) if i % 10 != 7]
    assert [r["id"] for r in rows] == expected  # shards are in input order, and so are the rows of each
    assert all(r["response"] == f"{r['text']}?" == r["answer"] for r in rows)
    assert {r["finish_reason"] for r in rows} == {"stop"}
    assert {(r["prompt_tokens"], r["output_tokens"]) for r in rows} == {(3, 3)}


def test_run_of_rows_that_the_engine_fails_quarantines_these_alone(finished: Path) -> None:
    rows = rows_of(finished / "out", "quarantine")
    assert [r["id"] for r in rows] == FAILED
    assert {(r["stage"], r["error_type"], r["attempts"]) for r in rows} == {("engine", "echo_fail_on", 1)}
    assert all("fail_on" in r["message"] for r in rows)


def test_run_that_is_finished_leaves_the_files_of_the_contract(finished: Path) -> None:
    out = finished / "out"
    parts = [f"part-{n:06d}.parquet" for n in range(NUM_SHARDS)]
    assert sorted(f.name for f in out.iterdir()) == [
        "_SUCCESS",
        "commits",
        "data",
        "plan.parquet",
        "progress.json",
        "quarantine",
        "run.json",
    ]
    assert sorted(f.name for f in (out / "data").iterdir()) == parts
    assert sorted(f.name for f in (out / "quarantine").iterdir()) == parts
    assert sorted(f.name for f in (out / "commits").iterdir()) == [f"{n:06d}.json" for n in range(NUM_SHARDS)]


def test_run_that_is_finished_leaves_the_columns_of_the_contract(finished: Path) -> None:
    data = pq.read_schema(finished / "out/data/part-000000.parquet")
    assert {f.name: f.type for f in data if f.name != "lineage"} == {
        "id": pa.string(),
        "text": pa.string(),
        "response": pa.string(),
        "answer": pa.string(),
        "finish_reason": pa.string(),
        "prompt_tokens": pa.int32(),
        "output_tokens": pa.int32(),
    }
    quarantine = pq.read_schema(finished / "out/quarantine/part-000000.parquet")
    assert {f.name: f.type for f in quarantine if f.name != "lineage"} == {
        "id": pa.string(),
        "text": pa.string(),
        "stage": pa.string(),
        "error_type": pa.string(),
        "message": pa.string(),
        "attempts": pa.int32(),
    }
    for schema in (data, quarantine):
        assert schema.names[-1] == "lineage"
        assert {f.name: f.type for f in schema.field("lineage").type} == LINEAGE


def test_run_that_is_finished_says_where_each_row_came_from(finished: Path) -> None:
    run = json.loads((finished / "out/run.json").read_text())
    inputs = {str(f): pq.ParquetFile(f) for f in (finished / "input").iterdir()}
    rows = [*rows_of(finished / "out"), *rows_of(finished / "out", "quarantine")]
    assert len(rows) == NUM_ROWS
    for row in rows:
        origin = row["lineage"]
        group = inputs[origin["input_uri"]].read_row_group(origin["row_group"]).to_pylist()
        assert group[origin["row"]]["id"] == row["id"]
        assert origin["run_id"] == run["run_id"]
        assert origin["attempt"] == 1
        assert origin["model"] == "echo"
        assert origin["weights_digest"] is None  # the echo engine has no weights
        assert origin["engine"].startswith("echo ")
    assert len({r["lineage"]["request_sha256"] for r in rows}) == NUM_ROWS
    assert len({r["lineage"]["sampling_sha256"] for r in rows}) == 1


def test_run_that_is_finished_records_its_shards_and_totals(finished: Path) -> None:
    out = finished / "out"
    run = json.loads((out / "run.json").read_text())
    plan = pq.read_table(out / "plan.parquet").to_pylist()
    records = commits(out)
    assert [p["shard"] for p in plan] == list(range(NUM_SHARDS)) == list(records)
    assert [p["num_rows"] for p in plan] == [20, 20, 10, 20, 20, 10] == [r["rows_in"] for r in records.values()]
    for shard, record in records.items():
        assert set(record) == {
            "run_id",
            "shard",
            "rows_in",
            "rows_ok",
            "rows_quarantined",
            "tokens",
            "seconds",
            "engine",
            "attempt",
            "data",
            "quarantine",
            "reasons",
            "history",
            "committed_at",
            "rows_reused",
            "rows_cached",
        }
        assert record["rows_in"] == record["rows_ok"] + record["rows_quarantined"]
        assert record["tokens"] == {"prompt": 3 * record["rows_ok"], "output": 3 * record["rows_ok"]}
        for kind in ("data", "quarantine"):
            stored = out / record[kind]["uri"]
            assert stored == out / kind / f"part-{shard:06d}.parquet"
            assert record[kind]["size"] == stored.stat().st_size
            assert record[kind]["etag"]
    totals = json.loads((out / "_SUCCESS").read_text())
    expectations = {name: totals.pop(name) for name in ("estimate", "spent", "compared")}
    assert expectations["spent"] == {"seconds": run["sessions"][0]["seconds"], "gpu_hours": None}
    assert expectations["estimate"] == run["estimate"] and "output tokens" in expectations["compared"]
    assert totals == {
        "run_id": run["run_id"],
        "shards": NUM_SHARDS,
        "rows_in": NUM_ROWS,
        "rows_ok": 90,
        "rows_quarantined": 10,
        "rows_reused": 0,
        "rows_cached": 0,
        "prompt_tokens": 270,
        "output_tokens": 270,
        "quarantine_reasons": {"engine/echo_fail_on": 10},
    }


def test_run_that_is_finished_records_its_config_digests_and_versions(finished: Path) -> None:
    run = json.loads((finished / "out/run.json").read_text())
    assert run["status"] == "done"
    assert run["fingerprint"].startswith("sha256:")
    assert run["config"]["prompt"]["user"] == "{{ text }}?"
    assert run["config"]["shard"] == {"max_rows": 512, "max_bytes": 64 * 2**20}  # the whole config, defaults too
    assert {"name", "location", "weights_digest", "tokenizer_digest", "template_digest"} <= set(run["model"])
    (session,) = run["sessions"]
    assert {"python", "ray", "pyarrow"} <= set(session["versions"])
    assert session["host"] and session["platform"] and session["started_at"] < session["ended_at"]
    assert session["engine_deaths"] == 0 and len(session["engines"]) == 1


def test_run_exports_what_its_engine_did_at_the_metrics_endpoint_of_ray(finished: Path) -> None:
    run = json.loads((finished / "out/run.json").read_text())
    deadline = time.monotonic() + 20
    while not (rows := exported("ray_herd_rows_total", run["run_id"])) and time.monotonic() < deadline:
        time.sleep(0.2)  # Ray collects metrics now and then, and when an actor ends
    assert rows == {(engine, figures["rows"]) for engine, figures in run["sessions"][0]["engines"].items()}
    ((_, write_s),) = exported("ray_herd_write_seconds_total", run["run_id"])
    assert write_s > 0


def exported(name: str, run_id: str) -> set[tuple[str, float]]:
    """What the nodes of the cluster export for a run: engine and value of a metric."""
    found = set()
    for node in ray.nodes():
        if node["Alive"]:
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(url, timeout=10) as answer:
                lines = [line for line in answer.read().decode().splitlines() if line.startswith(name + "{")]
            for line in (line for line in lines if f'run="{run_id}"' in line):
                engine = line.partition('engine="')[2].partition('"')[0]
                found.add((engine, float(line.rpartition(" ")[2])))
    return found


def test_run_that_is_finished_is_read_by_duckdb(finished: Path) -> None:
    with duckdb.connect() as db:
        (answered,) = db.execute(
            f"select count(*) from '{finished}/out/data/*.parquet' where lineage.shard between 0 and 5 and answer = response"
        ).fetchone()
        reasons = db.execute(
            f"select stage, error_type, count(*) from '{finished}/out/quarantine/*.parquet' group by all"
        ).fetchall()
    assert answered == 90
    assert reasons == [("engine", "echo_fail_on", 10)]


def test_verify_of_a_finished_run_finds_it_complete(finished: Path, herd: Herd) -> None:
    plain, verdict = herd("verify", finished / "out"), herd("verify", finished / "out", "--json")
    assert (plain.code, verdict.code) == (0, 0)
    assert plain.out.splitlines()[-1] == "complete"
    found = json.loads(verdict.out)
    assert found["complete"] is True
    assert (found["rows_planned"], found["rows_ok"], found["rows_quarantined"]) == (NUM_ROWS, 90, 10)
    assert (found["rows_missing"], found["num_problems"], found["problems"]) == (0, 0, [])


def test_run_of_a_finished_job_does_nothing_and_exits_with_0(finished: Path, herd: Herd) -> None:
    before = {f: f.stat().st_mtime_ns for f in (finished / "out").rglob("*")}
    outcome = herd("run", finished / "job.yaml", "--json")
    again = json.loads(outcome.out)
    assert outcome.code == 0
    assert (again["rows_ok"], again["rows_quarantined"], again["session"]) == (90, 10, None)
    assert {f: f.stat().st_mtime_ns for f in (finished / "out").rglob("*")} == before
    assert "nothing was left to do" in herd("run", finished / "job.yaml").out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("sampling.max_tokens=7", "sampling.max_tokens: 512 -> 7"),
        ("prompt.user='{{ id }}'", "prompt.user: '{{ text }}?' -> '{{ id }}'"),
        ("shard.max_rows=5", "shard.max_rows: 512 -> 5"),
    ],
)
def test_run_of_another_job_on_a_runs_output_is_refused_with_the_difference(
    finished: Path, herd: Herd, change: str, named: str
) -> None:
    outcome = herd("run", finished / "job.yaml", "--set", change)
    assert_ended(outcome, 2, "holds another run", named, str(finished / "out"), "Choose another output.uri")


def test_run_over_changed_input_on_a_runs_output_is_refused_with_the_file(finished: Path, herd: Herd) -> None:
    changed = finished / "input" / "part-1.parquet"
    stamp = changed.stat()
    try:
        os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
        outcome = herd("run", finished / "job.yaml")
    finally:
        os.utime(changed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert_ended(outcome, 2, "holds another run", f"input files: {changed}")


def test_status_of_a_finished_run_counts_its_shards_and_rows(finished: Path, herd: Herd) -> None:
    found = json.loads(herd("status", finished / "out", "--json").out)
    assert found["status"] == "done"
    assert (found["shards"], found["shards_committed"], found["rows"]) == (NUM_SHARDS, NUM_SHARDS, NUM_ROWS)
    assert (found["rows_ok"], found["rows_quarantined"]) == (90, 10)
    assert found["model"] == "echo"
    assert found["next"] == f"herd verify {finished / 'out'}"
    assert "shards committed" in herd("status", finished / "out").out


def test_status_of_a_finished_run_has_the_last_figures_of_its_session(finished: Path, herd: Herd) -> None:
    live = json.loads(herd("status", finished / "out", "--json").out)["live"]
    (session,) = json.loads((finished / "out/run.json").read_text())["sessions"]
    assert (live["shards_done"], live["rows_ok"], live["rows_quarantined"]) == (NUM_SHARDS, 90, 10)
    assert live["age_s"] >= 0
    for key in ("overview", "by_engine", "bottleneck"):
        assert live[key] == session[key]
    seconds = live["overview"]["stage_seconds"]
    assert set(seconds) == {"read", "render", "images", "prepare", "generate", "parse", "write"}
    assert seconds["read"] > 0 and seconds["write"] > 0
    assert list(live["by_engine"]) == list(session["engines"])
    assert "stage seconds" in herd("status", finished / "out").out


def test_status_of_an_output_without_figures_of_its_run_works(finished: Path, herd: Herd, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "old"))
    (out / "progress.json").write_text(json.dumps({"run_id": "another", "written_at": "2025-01-01T00:00:00+00:00"}))
    assert json.loads(herd("status", out, "--json").out)["live"] is None
    (out / "progress.json").unlink()
    assert json.loads(herd("status", out, "--json").out)["live"] is None
    assert "shards committed" in herd("status", out).out
    assert herd("verify", out).code == 0


def test_status_of_a_stopped_run_says_how_to_go_on(finished: Path, herd: Herd, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "stopped"))
    (out / "_SUCCESS").unlink()
    (out / "commits/000003.json").unlink()
    found = json.loads(herd("status", out, "--json").out)
    assert (found["status"], found["shards_committed"]) == ("running or stopped", NUM_SHARDS - 1)
    assert found["next"] == f"herd resume {out}"


def test_show_of_a_finished_run_shows_answers(finished: Path, herd: Herd) -> None:
    rows = json.loads(herd("show", finished / "out", "-n", 3, "--json").out)
    assert [(r["id"], r["answer"]) for r in rows] == [(f"row-{i:05d}", f"question number {i}?") for i in range(3)]
    table = herd("show", finished / "out", "-n", 3)
    assert table.code == 0
    assert "question number 2?" in table.out and "part-0.parquet:0:2" in table.out
    assert "question number 3?" not in table.out


def test_show_quarantine_of_a_finished_run_shows_why(finished: Path, herd: Herd) -> None:
    rows = json.loads(herd("show", finished / "out", "--quarantine", "--json").out)
    assert [r["id"] for r in rows] == FAILED
    assert {r["error_type"] for r in rows} == {"echo_fail_on"}
    assert "fail_on" in herd("show", finished / "out", "--quarantine", "--stage", "engine").out
    assert "no quarantined rows" in herd("show", finished / "out", "--quarantine", "--stage", "image").out
    assert_ended(herd("show", finished / "out", "--stage", "engine"), 2, "--stage goes with --quarantine")


def test_plan_of_a_job_counts_files_rows_and_shards_and_writes_nothing(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(100)
    job = write_job(shard={"max_rows": 8})
    facts = json.loads(herd("plan", job, "--json").out)
    assert (facts["num_files"], facts["num_rows"], facts["num_shards"]) == (2, 100, 16)
    assert facts["rows_per_shard"] == {"min": 5, "max": 7}  # a group of 20 in three parts, one of 10 in two
    assert facts["columns_read"] == ["id: string", "text: string"]
    assert facts["columns_carried"] == ["id", "text"]
    on_cluster = json.loads(herd("plan", job, "--address", "auto", "--json").out)["engines"]
    assert (on_cluster["count"], on_cluster["basis"]) == (1, "the Ray cluster at auto")
    assert "room for" in on_cluster["note"]
    assert "100 rows in 2 files" in herd("plan", job).out
    assert not (tmp_path / "out").exists()


def test_models_lists_the_herd_and_what_is_refused(herd: Herd) -> None:
    found = {m["name"]: m for m in json.loads(herd("models", "--json").out)}
    assert {"scout", "scout-int4", "maverick", "maverick-bf16", "behemoth"} <= set(found)
    assert found["maverick"]["engine"]["tensor_parallel_size"] == 8
    assert found["maverick"]["refused"] is None
    assert "never released" in found["behemoth"]["refused"]
    assert "maverick" in herd("models").out


def test_doctor_of_a_sound_job_passes_and_leaves_nothing_behind(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(20)
    outcome = herd("doctor", write_job(), "--json")
    verdicts = {f["what"]: f["verdict"] for f in json.loads(outcome.out)}
    assert outcome.code == 0
    assert {verdicts[what] for what in ("settings", "input", "model", "output")} == {"pass"}
    assert not (tmp_path / "out").exists()


def test_doctor_of_a_job_without_input_fails_with_what_to_do(
    herd: Herd, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    outcome = herd("doctor", write_job(), "--json")
    (finding,) = [f for f in json.loads(outcome.out) if f["what"] == "input"]
    assert outcome.code == 4
    assert finding["verdict"] == "fail"
    assert str(tmp_path / "input") in finding["found"] and finding["todo"]


def test_resume_of_a_moved_run_without_some_commits_answers_just_these_shards(
    finished: Path, herd: Herd, tmp_path: Path
) -> None:
    # the folder is copied elsewhere: what a command is given is the folder that it works on
    out = Path(shutil.copytree(finished / "out", tmp_path / "moved"))
    before = commits(out)
    for name in ("_SUCCESS", "commits/000001.json", "commits/000004.json"):
        (out / name).unlink()
    outcome = herd("resume", out, "--json")
    after = commits(out)
    assert outcome.code == 0
    assert json.loads(outcome.out)["session"]["shards_done"] == 2
    assert {s for s in after if after[s] != before[s]} == {1, 4}
    assert herd("verify", out).code == 0


def test_resume_of_a_run_by_two_engines_without_some_commits_answers_just_these_shards(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_input(100, rows_per_group=5)
    job = write_job(pool={"min": 2, "shards_in_flight": 1}, engine={"kind": "echo", "echo": {"latency_s": 0.1}})
    assert herd("run", job).code == 0
    before = commits(out)
    engines = [r["engine"] for r in before.values()]
    assert len(before) == 20 and len(set(engines)) == 2
    assert {r["lineage"]["engine"] for r in rows_of(out)} == set(engines)

    for name in ("_SUCCESS", "commits/000011.json", "commits/000018.json"):
        (out / name).unlink()
    assert herd("verify", out).code == 4
    outcome = herd("resume", out, "--json")
    after = commits(out)
    assert outcome.code == 0
    assert json.loads(outcome.out)["session"]["shards_done"] == 2
    assert {s for s in after if after[s] != before[s]} == {11, 18}
    assert [r["id"] for r in rows_of(out)] == [f"row-{i:05d}" for i in range(100)]
    assert herd("verify", out).code == 0
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 2


def test_run_with_choices_answers_with_choices_and_quarantines_what_max_tokens_cut(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(60)
    job = write_job(
        answer={"choice": ["yes", "rather not"]}, sampling={"max_tokens": 1}, limits={"max_quarantined_fraction": 1}
    )
    assert herd("run", job).code == 0
    answered, cut = rows_of(tmp_path / "out"), rows_of(tmp_path / "out", "quarantine")
    assert len(answered) + len(cut) == 60 and answered and cut
    assert {r["answer"] for r in answered} == {"yes"}
    assert {(r["stage"], r["error_type"]) for r in cut} == {("answer", "answer_cut")}
    assert all("max_tokens" in r["message"] and "rather" in r["message"] for r in cut)


def test_run_with_a_schema_and_sampling_by_row_gives_typed_answers(herd: Herd, tmp_path: Path) -> None:
    sampling = [None, json.dumps({"max_tokens": 50}), json.dumps({"max_tokens": 1}), "{not json", '["a list"]']
    rows = [{"id": f"row-{i}", "text": f"review {i}", "how": sampling[i % 5]} for i in range(50)]
    properties = {
        "stars": {"type": "integer", "minimum": 3},
        "mood": {"enum": ["very good"]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
    }
    job = {
        "input": {"uri": str(write_rows(tmp_path / "input", rows)), "sampling": "how"},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo"},
        "answer": {"json_schema": {"type": "object", "properties": properties, "required": list(properties)}},
        "limits": {"max_quarantined_fraction": 1},
        "output": {"uri": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert herd("run", tmp_path / "job.yaml").code == 0
    answer = pq.read_schema(tmp_path / "out/data/part-000000.parquet").field("answer").type
    assert {f.name: f.type for f in answer if f.name != "tags"} == {"stars": pa.int64(), "mood": pa.string()}
    assert answer.field("tags").type.value_type == pa.string()
    answered = rows_of(tmp_path / "out")
    assert [r["id"] for r in answered] == [f"row-{i}" for i in range(50) if i % 5 < 2]
    assert all(r["answer"] == {"stars": 3, "mood": "very good", "tags": ["x", "x"]} for r in answered)
    assert all(json.loads(r["response"]) == r["answer"] for r in answered)
    assert len({r["lineage"]["sampling_sha256"] for r in answered}) == 2
    wanted = ["answer/answer_cut", "render/bad_sampling", "render/bad_sampling"]
    assert failures(tmp_path / "out") == {f"row-{i}": wanted[i % 5 - 2] for i in range(50) if i % 5 >= 2}


def test_run_over_a_messages_column_asks_each_chat(herd: Herd, tmp_path: Path) -> None:
    def chat(number: int) -> list[dict[str, str]]:
        turns = [("system", "be brief"), ("user", f"question {number}"), ("assistant", "hm"), ("user", "well?")]
        return [{"role": role, "content": content} for role, content in turns]

    rows = [{"id": f"row-{i}", "chat": chat(i)} for i in range(20)]
    rows[3]["chat"] = None
    rows[4]["chat"] = []
    rows[5]["chat"] = [{"role": "nobody", "content": "hello"}]
    job = {
        "input": {"uri": str(write_rows(tmp_path / "input", rows))},
        "prompt": {"messages": "chat"},
        "engine": {"kind": "echo"},
        "limits": {"max_quarantined_fraction": 1},
        "output": {"uri": str(tmp_path / "out")},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert herd("run", tmp_path / "job.yaml").code == 0
    answered = {r["id"]: r for r in rows_of(tmp_path / "out")}
    assert answered["row-7"]["response"] == "be brief\nquestion 7\nhm\nwell?"
    assert "chat" not in answered["row-7"]  # carried columns are all but the messages
    assert len(answered) == 17
    bad = "render/bad_messages"
    assert failures(tmp_path / "out") == {"row-3": "render/null_value", "row-4": bad, "row-5": bad}


def test_replay_of_rows_that_fail_again_counts_their_attempts(
    herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_input(100)
    job = write_job(engine={"kind": "echo", "echo": {"fail_on": "number [12]7"}})
    first = herd("run", job)
    assert first.code == 3
    assert "limits.max_quarantined_fraction = 0.01" in first.err and "Traceback" not in first.err
    assert "2 quarantined" in first.out
    assert (out / "_SUCCESS").exists()  # the run is done; only its limit is passed
    untouched = {s: r for s, r in commits(out).items() if r["quarantine"] is None}
    answered = {r["id"]: r for r in rows_of(out)}

    again = herd("replay", out, "--json")
    assert again.code == 3
    assert json.loads(again.out)["rows_quarantined"] == 2
    assert [(r["id"], r["attempts"], r["lineage"]["attempt"]) for r in rows_of(out, "quarantine")] == [
        ("row-00017", 2, 2),
        ("row-00027", 2, 2),
    ]
    assert {r["id"]: r for r in rows_of(out)} == answered
    assert {s: commits(out)[s] for s in untouched} == untouched
    assert herd("verify", out).code == 0
    assert_ended(herd("replay", out, "--type", "image_missing"), 2, "No quarantined row is asked for")
    assert (out / "_SUCCESS").exists()


def test_replay_of_rows_that_are_mended_moves_them_to_the_data(herd: Herd, tmp_path: Path) -> None:
    out, images = tmp_path / "out", tmp_path / "images"
    images.mkdir()
    rows = [{"id": f"row-{i:02d}", "text": f"what is {i}?", "image": f"{images}/{i:02d}.png"} for i in range(20)]
    rows[15]["text"] = None  # this row stays as it is: nobody asks for it again
    for i in range(20):
        if i not in (4, 9):
            (images / f"{i:02d}.png").write_bytes(png())
    job = {
        "input": {"uri": str(write_rows(tmp_path / "input", rows, 10)), "images": ["image"]},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo"},
        "render": {"images": {"allow_local_files": True}},
        "limits": {"max_quarantined_fraction": 0.2},
        "output": {"uri": str(out)},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    assert herd("run", tmp_path / "job.yaml").code == 0
    assert failures(out) == {
        "row-04": "image/image_missing",
        "row-09": "image/image_missing",
        "row-15": "render/null_value",
    }
    (images / "04.png").write_bytes(png())
    (images / "09.png").write_bytes(png())
    outcome = herd("replay", out, "--stage", "image", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["rows_ok"] == 19
    assert [r["id"] for r in rows_of(out)] == [f"row-{i:02d}" for i in range(20) if i != 15]
    assert failures(out) == {"row-15": "render/null_value"}
    attempts = {r["id"]: r["lineage"]["attempt"] for r in rows_of(out)}
    assert (attempts["row-04"], attempts["row-09"], attempts["row-05"], attempts["row-10"]) == (2, 2, 1, 1)
    assert {h["row"]: (h["attempt"], h["error_type"]) for h in commits(out)[0]["history"]} == {
        4: (1, "image_missing"),
        9: (1, "image_missing"),
    }
    assert herd("verify", out).code == 0


def test_run_without_a_job_file_takes_its_job_from_options(
    herd: Herd, write_input: Callable[..., Path], tmp_path: Path
) -> None:
    source, out = write_input(20), tmp_path / "out"
    options = ["--input", f"{source}/*.parquet", "--prompt", "Say: {{ text }}", "--system", "Be kind.", "--output", out]
    outcome = herd("run", *options, "--max-tokens", 4, "--set", "engine.kind=echo")
    assert outcome.code == 0
    assert "20 answered + 0 quarantined" in outcome.out
    assert f"herd verify {out}" in outcome.out
    assert rows_of(out)[0]["response"] == "Be kind.\nSay: question number"
    assert {r["finish_reason"] for r in rows_of(out)} == {"length"}
    assert json.loads((out / "run.json").read_text())["name"] == "adhoc"
