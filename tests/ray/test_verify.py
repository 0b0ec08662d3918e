"""`herd verify` over a finished run that someone has broken since: it says what is wrong, and exits with 4."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Herd, Outcome
from tests.ray.helpers import assert_ended

DATA, QUARANTINE = "data/part-000002.parquet", "quarantine/part-000002.parquet"  # 9 rows and 1 row
RECORD = "commits/000002.json"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run's output, to break."""
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(file).read()), file)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def assert_incomplete(outcome: Outcome, *problems: str) -> dict[str, Any]:
    """The verdict (of `--json`) is that the run is not complete, for exactly these problems."""
    found: dict[str, Any] = json.loads(outcome.out)
    assert outcome.code == 4
    assert found["complete"] is False
    assert found["problems"] == list(problems)
    assert found["num_problems"] == len(problems)
    return found


def test_verify_without_a_data_file_names_it(out: Path, herd: Herd) -> None:
    (out / DATA).unlink()
    plain = herd("verify", out)
    assert plain.code == 4
    assert f"{DATA} is missing" in plain.out
    assert plain.out.splitlines()[-1] == "NOT complete"
    assert_incomplete(
        herd("verify", out, "--json"),
        f"shard 000002: {DATA} is missing",
        "shard 000002: 9 rows missing, 0 standing twice",
    )


def test_verify_without_a_commit_record_counts_its_rows_as_missing(out: Path, herd: Herd) -> None:
    (out / "_SUCCESS").unlink()
    (out / RECORD).unlink()
    found = assert_incomplete(herd("verify", out, "--json"))  # nothing is wrong with a run that is not finished
    assert (found["shards"], found["shards_committed"], found["rows_missing"]) == (6, 5, 10)


def test_verify_without_a_commit_record_that_success_counts_says_so(out: Path, herd: Herd) -> None:
    (out / RECORD).unlink()
    assert_incomplete(
        herd("verify", out, "--json"),
        "_SUCCESS says rows_ok = 90, the records say 81",
        "_SUCCESS says rows_quarantined = 10, the records say 9",
        "_SUCCESS says shards = 6, the records say 5",
    )


def test_verify_with_a_row_removed_says_which_shard(out: Path, herd: Herd) -> None:
    rewrite(out / DATA, lambda t: t.slice(1))
    assert_incomplete(
        herd("verify", out, "--json"),
        f"shard 000002: {DATA} has 8 rows and its record says 9",
        "shard 000002: 1 rows missing, 0 standing twice",
    )


def test_verify_with_a_row_doubled_says_which_shard(out: Path, herd: Herd) -> None:
    rewrite(out / DATA, lambda t: pa.concat_tables([t, t.slice(3, 1)]))
    assert_incomplete(
        herd("verify", out, "--json"),
        f"shard 000002: {DATA} has 10 rows and its record says 9",
        "shard 000002: 0 rows missing, 1 standing twice",
    )


def test_verify_with_a_row_in_data_and_in_quarantine_says_so_though_the_counts_agree(out: Path, herd: Herd) -> None:
    quarantined = pq.ParquetFile(out / QUARANTINE).read()["lineage"]
    lineage = pa.chunked_array(
        [quarantined.combine_chunks(), pq.ParquetFile(out / DATA).read()["lineage"].chunk(0)[1:]]
    )
    rewrite(out / DATA, lambda t: t.set_column(t.column_names.index("lineage"), "lineage", lineage))
    assert_incomplete(herd("verify", out, "--json"), "shard 000002: 1 rows missing, 1 standing twice")


def test_verify_with_rows_of_another_shard_says_so(out: Path, herd: Herd) -> None:
    shutil.copy(out / "data/part-000005.parquet", out / DATA)  # as many rows, of the same row numbers
    assert_incomplete(herd("verify", out, "--json"), f"shard 000002: {DATA} has rows of another shard")


@pytest.mark.parametrize("name", ["data/part-000099.parquet", "data/stray.parquet", "quarantine/part-000002x.parquet"])
def test_verify_with_a_stray_part_file_names_it(out: Path, herd: Herd, name: str) -> None:
    shutil.copy(out / DATA, out / name)
    assert_incomplete(herd("verify", out, "--json"), f"{name} is not named by any commit record")


def test_verify_with_a_file_cut_short_says_that_it_cannot_be_read(out: Path, herd: Herd) -> None:
    (out / DATA).write_bytes((out / DATA).read_bytes()[:-20])
    outcome = herd("verify", out, "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 4
    assert found["problems"][0].startswith(f"shard 000002: {DATA} cannot be read: ")
    assert "Traceback" not in outcome.out + outcome.err


def test_verify_with_other_totals_in_success_says_both(out: Path, herd: Herd) -> None:
    edit(out / "_SUCCESS", rows_ok=91)
    assert_incomplete(herd("verify", out, "--json"), "_SUCCESS says rows_ok = 91, the records say 90")


def test_verify_without_success_is_not_complete(out: Path, herd: Herd) -> None:
    (out / "_SUCCESS").unlink()
    assert_incomplete(herd("verify", out, "--json"))


def test_verify_with_a_record_of_another_run_names_that_run(out: Path, herd: Herd) -> None:
    edit(out / RECORD, run_id="another-run")
    assert_incomplete(herd("verify", out, "--json"), "shard 000002: its record is of run another-run")


def test_verify_with_a_record_that_counts_wrongly_says_so(out: Path, herd: Herd) -> None:
    record = json.loads((out / RECORD).read_text())
    edit(out / RECORD, rows_in=9, rows_ok=8)
    found = json.loads(herd("verify", out, "--json").out)
    assert record["rows_ok"] == 9
    assert "10 rows planned, its record says 8 answered and 1 quarantined of 9" in found["problems"][0]


@pytest.mark.parametrize("shard", [77, 2])
def test_verify_with_a_record_of_no_planned_shard_says_so(out: Path, herd: Herd, shard: int) -> None:
    shutil.copy(out / RECORD, out / "commits/000077.json")
    edit(out / "commits/000077.json", shard=shard)
    outcome = herd("verify", out, "--json")
    assert outcome.code == 4
    assert "commits/000077.json" in "; ".join(json.loads(outcome.out)["problems"])


@pytest.mark.parametrize("content", ["", "{", '{"shard": 2}', "[]", "null"])
def test_verify_with_a_record_that_is_none_names_it(out: Path, herd: Herd, content: str) -> None:
    (out / RECORD).write_text(content)
    assert_ended(herd("verify", out), 2, "This commit record cannot be read", str(out / RECORD))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
@pytest.mark.parametrize("name", ["run.json", "plan.parquet"])
def test_verify_of_a_run_whose_books_are_broken_names_the_file(out: Path, herd: Herd, name: str, content: str) -> None:
    (out / name).write_text(content)
    assert_ended(herd("verify", out), 2, str(out / name))


def test_verify_of_a_run_whose_success_is_broken_says_so(out: Path, herd: Herd) -> None:
    (out / "_SUCCESS").write_text("{")
    outcome = herd("verify", out)
    assert outcome.code == 4
    assert "_SUCCESS" in outcome.out
    assert "NOT complete" in outcome.out


@pytest.mark.parametrize("command", ["verify", "status", "show", "resume", "replay"])
def test_command_on_a_folder_without_a_run_is_refused(tmp_path: Path, herd: Herd, command: str) -> None:
    assert_ended(herd(command, tmp_path), 2, "There is no run in this folder", str(tmp_path))
    assert_ended(herd(command, tmp_path / "nothing"), 2, "There is no run in this folder", str(tmp_path / "nothing"))


def test_verify_of_a_run_without_its_plan_is_refused(out: Path, herd: Herd) -> None:
    (out / "plan.parquet").unlink()
    assert_ended(herd("verify", out), 2, "plan.parquet", str(out))
