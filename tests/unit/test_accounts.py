from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.accounts import Answered, account, history
from pipeline.columns import Columns
from pipeline.config import StorageConfig
from pipeline.host.pieces import piece_schema
from pipeline.lease import Lease
from pipeline.model import ModelRef
from pipeline.output import LINEAGE, QUARANTINED_FIELDS, SECONDS, Output, answered_fields
from pipeline.source import ORIGIN
from pipeline.storage import Store

from .helpers import job

COLUMNS = Columns(carry=("id",), images=(), template=("text",), messages=None, sampling=None)
MODEL = ModelRef("tiny", "/models/tiny", weights_digest="sha256:w")
PIECES = pa.schema([f for f in piece_schema(job()) if f.name != "index"])
NAMES = {"columns": COLUMNS, "model": MODEL, "run_id": "run-1", "engine": "echo 1 #abc"}


def block(rows: list[int]) -> pa.Table:
    """A shard's block as it is read: these rows of the second row group of a file."""
    origin = {"shard": 7, "uri": "s3://b/in.parquet", "etag": "e", "row_group": 1}
    values = [
        {"id": f"id {row}", "text": f"text {row}", **{f"__herd_{k}": v for k, v in origin.items()}, "__herd_row": row}
        for row in rows
    ]
    return pa.Table.from_pylist(values, schema=pa.schema([("id", pa.string()), ("text", pa.string()), *ORIGIN]))


def ok(number: int) -> dict[str, Any]:
    said = {"response": f"said {number}", "answer": f"said {number}", "finish_reason": "stop"}
    return {**said, "prompt_tokens": 3, "output_tokens": 2, "request_sha256": f"r{number}", "sampling_sha256": "s"}


def bad(stage: str, error_type: str) -> dict[str, Any]:
    return {"stage": stage, "error_type": error_type, "message": "no"}


def answered(
    *pieces: dict[str, Any],
    tries: list[int] | None = None,
    history: list[tuple[int, int, str, str, str]] | None = None,
    chunks: int = 1,
) -> Answered:
    """An answer in so many pieces, as the host puts it together."""
    size = -(-len(pieces) // chunks)
    tables = [pa.Table.from_pylist(list(pieces[n : n + size]), schema=PIECES) for n in range(0, len(pieces), size)]
    return Answered(pa.concat_tables(tables), tries or [1] * len(pieces), history or [], 2.5)


def test_account_has_the_columns_that_a_commit_takes() -> None:
    whole = account(block([10, 11]), answered(ok(0), bad("image", "image_null")), 1, **NAMES)
    kinds = {f.name: f.type for f in [*answered_fields(pa.string()), *QUARANTINED_FIELDS]}
    assert {f.name: f.type for f in whole.schema} == {
        "id": pa.string(),
        **kinds,
        "lineage": LINEAGE,
        SECONDS: pa.float64(),
    }


def test_account_keeps_rows_in_order_with_what_was_said_of_each() -> None:
    pieces = [ok(0), bad("image", "image_null"), ok(2), bad("engine", "engine_death"), ok(4)]
    rows = account(block([10, 11, 12, 13, 14]), answered(*pieces, chunks=3), 1, **NAMES).to_pylist()
    assert [row["id"] for row in rows] == ["id 10", "id 11", "id 12", "id 13", "id 14"]
    assert [row["response"] for row in rows] == ["said 0", None, "said 2", None, "said 4"]
    assert [row["error_type"] for row in rows] == [None, "image_null", None, "engine_death", None]
    assert {row[SECONDS] for row in rows} == {2.5}


def test_account_lineage_names_each_row_of_the_input() -> None:
    before = datetime.now(UTC)
    rows = account(
        block([10, 14]), answered(ok(0) | {"cached_from": "run-0"}, bad("render", "null_value")), 2, **NAMES
    )["lineage"].to_pylist()
    created = [row.pop("created_at") for row in rows]
    same = {
        "run_id": "run-1",
        "shard": 7,
        "input_uri": "s3://b/in.parquet",
        "input_etag": "e",
        "row_group": 1,
        "model": "tiny",
        "weights_digest": "sha256:w",
        "engine": "echo 1 #abc",
        "attempt": 2,
    }
    assert rows == [
        {**same, "row": 10, "request_sha256": "r0", "sampling_sha256": "s", "cached_from": "run-0"},
        {**same, "row": 14, "request_sha256": None, "sampling_sha256": None, "cached_from": None},
    ]
    assert all(before <= at <= datetime.now(UTC) for at in created)


@pytest.mark.parametrize("attempt", [1, 3])
def test_account_counts_attempts_of_the_shard_and_tries_of_the_row(attempt: int) -> None:
    pieces = [ok(0), ok(1), bad("image", "image_null"), bad("engine", "engine_death")]
    whole = account(block([0, 1, 2, 3]), answered(*pieces, tries=[1, 2, 1, 3]), attempt, **NAMES)
    wanted = [attempt, attempt + 1, attempt, attempt + 2]
    assert whole["lineage"].combine_chunks().field("attempt").to_pylist() == wanted
    assert whole["attempts"].to_pylist() == [None, None, *wanted[2:]]


def test_account_without_carried_columns_holds_the_answers() -> None:
    nothing = Columns(carry=(), images=(), template=("text",), messages=None, sampling=None)
    whole = account(block([0, 1]), answered(ok(0), ok(1)), 1, **{**NAMES, "columns": nothing})
    assert whole.column_names[0] == "response"
    assert whole.num_rows == 2


def test_history_numbers_rows_and_attempts_as_the_lineage_does() -> None:
    tries = [(1, 1, "engine_death", "killed", "t1"), (1, 2, "engine_stall", "hung", "t2"), (0, 1, "x", "y", "t3")]
    result = answered(ok(0), ok(1), tries=[2, 3], history=tries)
    assert history(block([10, 14]), result, 4) == [
        {"row": 14, "attempt": 4, "stage": "engine", "error_type": "engine_death", "message": "killed", "at": "t1"},
        {"row": 14, "attempt": 5, "stage": "engine", "error_type": "engine_stall", "message": "hung", "at": "t2"},
        {"row": 10, "attempt": 4, "stage": "engine", "error_type": "x", "message": "y", "at": "t3"},
    ]
    lineage = account(block([10, 14]), result, 4, **NAMES)["lineage"].combine_chunks()
    assert lineage.field("attempt").to_pylist() == [5, 6]


def test_history_of_a_shard_that_met_no_death_is_empty() -> None:
    assert history(block([10]), answered(ok(0)), 1) == []


def test_account_can_be_committed(tmp_path: Path) -> None:
    output = Output(str(tmp_path), Store(str(tmp_path), StorageConfig()))
    lease = Lease(output.uri, output.store, lease_s=600)
    tries = [(1, 1, "engine_death", "killed", "t1")]
    result = answered(ok(0), bad("engine", "engine_death"), tries=[1, 2], history=tries)
    shard = block([10, 14])
    record = output.commit(account(shard, result, 1, **NAMES), "run-1", lease.token, history=history(shard, result, 1))
    lease.release()
    assert (record.shard, record.rows_ok, record.rows_quarantined, record.attempt) == (7, 1, 1, 2)
    assert (record.seconds, record.engine, record.reasons) == (2.5, "echo 1 #abc", {"engine/engine_death": 1})
    assert [entry["row"] for entry in output.records()[0].history] == [14]
    assert output.read_table("data/part-000007.parquet")["id"].to_pylist() == ["id 10"]
    assert output.read_table("quarantine/part-000007.parquet")["attempts"].to_pylist() == [2]
