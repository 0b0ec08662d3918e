import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError
from pipeline.output import LINEAGE, QUARANTINED_FIELDS, SECONDS, CommitRecord, Output, answered_fields
from pipeline.storage import Store

ANSWER = pa.struct([("label", pa.string())])
CARRIED = [pa.field("id", pa.int64())]
ENDING = [pa.field("lineage", LINEAGE), pa.field(SECONDS, pa.float64())]
BLOCK = pa.schema([*CARRIED, *answered_fields(ANSWER), *QUARANTINED_FIELDS, *ENDING])
NOW = datetime(2025, 6, 1, tzinfo=UTC)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    uri = str(tmp_path / "out")
    return Output(uri, Store(uri, StorageConfig()))


def row(number: int, *, failed: str | None = None, shard: int = 3, attempt: int = 1) -> dict[str, Any]:
    lineage = {
        "run_id": "run-1",
        "shard": shard,
        "input_uri": "s3://b/in.parquet",
        "input_etag": "e",
        "row_group": 0,
        "row": number,
        "request_sha256": "r",
        "model": "m",
        "weights_digest": "w",
        "sampling_sha256": "s",
        "engine": f"echo {attempt}",
        "attempt": attempt,
        "created_at": NOW,
    }
    common = {"id": 100 + number, "lineage": lineage, SECONDS: 1.5}
    if failed:
        return {**common, "stage": "image", "error_type": failed, "message": "no", "attempts": attempt}
    said = {"response": f'{{"label": "{number}"}}', "answer": {"label": str(number)}, "finish_reason": "stop"}
    return {**common, **said, "prompt_tokens": 10, "output_tokens": number}


def block(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=BLOCK)


def mixed() -> pa.Table:
    null = "image_null"
    return block(row(0), row(1, failed=null), row(2), row(3, failed=null), row(4, failed="not_an_image"))


def listing(output: Output) -> set[str]:
    return {os.path.relpath(p, output.uri) for p in Path(output.uri).rglob("*") if p.is_file()}


def test_commit_writes_both_kinds_and_a_record_that_adds_up(output: Output) -> None:
    record = output.commit(mixed(), "run-1", may_have_leftovers=False)
    assert listing(output) == {
        "data/part-000003.parquet",
        "quarantine/part-000003.parquet",
        "commits/000003.json",
    }
    assert (record.shard, record.rows_in, record.rows_ok, record.rows_quarantined) == (3, 5, 2, 3)
    assert record.tokens == {"prompt": 20, "output": 2}
    assert record.reasons == {"image/image_null": 2, "image/not_an_image": 1}
    assert (record.seconds, record.attempt, record.engine) == (1.5, 1, "echo 1")
    assert record.data and record.quarantine
    assert (record.data["rows"], record.quarantine["rows"]) == (2, 3)
    for named in (record.data, record.quarantine):
        info = output.store.stat(output.at(named["uri"]))
        assert (named["size"], named["etag"]) == (info.size, info.etag)


def test_commit_data_has_documented_columns_and_rows(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    data = output.read_table("data/part-000003.parquet")
    assert data.column_names == [
        *("id", "response", "answer", "finish_reason", "prompt_tokens", "output_tokens", "lineage")
    ]
    assert data["id"].to_pylist() == [100, 102]
    assert data["answer"].to_pylist() == [{"label": "0"}, {"label": "2"}]
    assert data["lineage"][1].as_py() == row(2)["lineage"]


def test_commit_quarantine_has_documented_columns_and_rows(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    bad = output.read_table("quarantine/part-000003.parquet")
    assert bad.column_names == ["id", "stage", "error_type", "message", "attempts", "lineage"]
    assert bad["error_type"].to_pylist() == ["image_null", "image_null", "not_an_image"]
    assert bad["lineage"].combine_chunks().field("row").to_pylist() == [1, 3, 4]


def test_commit_without_failures_writes_no_quarantine(output: Output) -> None:
    record = output.commit(block(row(0), row(1)), "run-1", may_have_leftovers=False)
    assert record.quarantine is None and record.reasons == {}
    assert listing(output) == {"data/part-000003.parquet", "commits/000003.json"}


def test_commit_without_answers_writes_no_data(output: Output) -> None:
    record = output.commit(block(row(0, failed="image_null")), "run-1", may_have_leftovers=False)
    assert record.data is None
    assert record.tokens == {"prompt": 0, "output": 0}
    assert listing(output) == {"quarantine/part-000003.parquet", "commits/000003.json"}


def test_commit_again_replaces_and_removes_leftovers(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    record = output.commit(block(row(0, attempt=2), row(1, attempt=2)), "run-1", may_have_leftovers=True)
    assert listing(output) == {"data/part-000003.parquet", "commits/000003.json"}
    assert (record.attempt, record.engine) == (2, "echo 2")
    assert output.read_table("data/part-000003.parquet")["id"].to_pylist() == [100, 101]


def test_commit_record_comes_last(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[str] = []
    real = Store.put

    def noted(self: Store, uri: str, data: bytes) -> Any:
        put.append(os.path.relpath(uri, output.uri))
        return real(self, uri, data)

    monkeypatch.setattr(Store, "put", noted)
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    assert put == ["data/part-000003.parquet", "quarantine/part-000003.parquet", "commits/000003.json"]


def test_commit_takes_the_engine_of_the_latest_attempt(output: Output) -> None:
    record = output.commit(block(row(0, attempt=1), row(1, attempt=2)), "run-1", may_have_leftovers=False)
    assert (record.attempt, record.engine) == (2, "echo 2")


def test_merge_puts_replayed_rows_in_their_place(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    record = output.merge(block(row(1, attempt=2), row(3, failed="image_null", attempt=2)), "run-1")
    assert (record.rows_in, record.rows_ok, record.rows_quarantined, record.attempt) == (5, 3, 2, 2)
    assert output.read_table("data/part-000003.parquet")["id"].to_pylist() == [100, 101, 102]
    bad = output.read_table("quarantine/part-000003.parquet")
    assert bad["id"].to_pylist() == [103, 104]
    assert bad["attempts"].to_pylist() == [2, 1]
    assert output.records() == [record]


def test_merge_that_heals_all_rows_takes_the_quarantine_away(output: Output) -> None:
    output.commit(block(row(0), row(1, failed="image_null")), "run-1", may_have_leftovers=False)
    record = output.merge(block(row(1, attempt=2)), "run-1")
    assert (record.rows_ok, record.rows_quarantined) == (2, 0)
    assert listing(output) == {"data/part-000003.parquet", "commits/000003.json"}


def test_merge_that_stops_half_way_leaves_the_shard_undone(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)

    def fail(*args: Any) -> None:
        raise OSError("out of reach")

    monkeypatch.setattr(Store, "put", fail)
    with pytest.raises(OSError, match="out of reach"):
        output.merge(block(row(1, attempt=2)), "run-1")
    assert output.committed() == set()


def test_records_round_trip_by_shard(output: Output) -> None:
    records = [output.commit(block(row(0, shard=s)), "run-1", may_have_leftovers=False) for s in (12, 2, 1_000_001)]
    assert output.records() == sorted(records, key=lambda r: r.shard)
    assert output.committed() == {2, 12, 1_000_001}


def test_records_of_an_empty_output_are_none(output: Output) -> None:
    assert output.records() == []
    assert output.committed() == set()


def test_committed_ignores_other_files(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    for name in ("note.txt", "000009.json.0123.partial", "x.json"):
        (Path(output.uri) / "commits" / name).write_text("{}")
    assert output.committed() == {3}


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b'{"run_id": 1, "extra": 2}', b"\xff"])
def test_record_that_cannot_be_read_refused_with_its_place(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        CommitRecord.from_json(data, "out/commits/000001.json")
    assert str(caught.value).startswith("This commit record cannot be read: ")
    assert "(out/commits/000001.json)" in str(caught.value)


def test_parquet_tells_its_run_and_is_zstd(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    for kind in ("data", "quarantine"):
        footer = pq.read_metadata(output.at(f"{kind}/part-000003.parquet"))
        assert footer.metadata[b"herd.run_id"] == b"run-1"
        assert footer.metadata[b"herd.schema_version"] == b"1"
        assert footer.metadata[b"herd.shard"] == b"3"
        codecs = {footer.row_group(0).column(c).compression for c in range(footer.num_columns)}
        assert codecs == {"ZSTD"}


def test_duckdb_reads_the_data(output: Output) -> None:
    output.commit(mixed(), "run-1", may_have_leftovers=False)
    found = (
        duckdb.connect()
        .execute(
            "select id, answer.label, lineage.row, lineage.created_at is not null "
            f"from '{output.uri}/data/*.parquet' order by id"
        )
        .fetchall()
    )
    assert found == [(100, "0", 0, True), (102, "2", 2, True)]


def test_json_objects_round_trip(output: Output) -> None:
    assert not output.has("run.json")
    output.put_json("run.json", {"a": [1, None], "at": NOW})
    assert output.has("run.json")
    assert output.read_json("run.json") == {"a": [1, None], "at": str(NOW)}


def test_trailing_slash_of_the_output_makes_no_difference(tmp_path: Path) -> None:
    uri = f"{tmp_path}/out/"
    output = Output(uri, Store(uri, StorageConfig()))
    output.put_json("a.json", 1)
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == 1
