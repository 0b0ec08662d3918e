import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError, HerdError
from pipeline.lease import FencedError, Lease, Token
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


@pytest.fixture
def token(output: Output) -> Iterator[Token]:
    """The right to write the output, held while the test runs."""
    lease = Lease(output.uri, output.store, lease_s=600)
    yield lease.token
    lease.release()


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
        "cached_from": None,
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
    """The files of the output, but for the lease that the test holds."""
    found = {os.path.relpath(p, output.uri) for p in Path(output.uri).rglob("*") if p.is_file()}
    return found - {"_lease.json"}


def test_commit_writes_both_kinds_and_a_record_that_adds_up(output: Output, token: Token) -> None:
    record = output.commit(mixed(), "run-1", token)
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


def test_commit_data_has_documented_columns_and_rows(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
    data = output.read_table("data/part-000003.parquet")
    assert data.column_names == [
        *("id", "response", "answer", "finish_reason", "prompt_tokens", "output_tokens", "lineage")
    ]
    assert data["id"].to_pylist() == [100, 102]
    assert data["answer"].to_pylist() == [{"label": "0"}, {"label": "2"}]
    assert data["lineage"][1].as_py() == row(2)["lineage"]


def test_commit_quarantine_has_documented_columns_and_rows(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
    bad = output.read_table("quarantine/part-000003.parquet")
    assert bad.column_names == ["id", "stage", "error_type", "message", "attempts", "lineage"]
    assert bad["error_type"].to_pylist() == ["image_null", "image_null", "not_an_image"]
    assert bad["lineage"].combine_chunks().field("row").to_pylist() == [1, 3, 4]


def test_commit_without_failures_writes_no_quarantine(output: Output, token: Token) -> None:
    record = output.commit(block(row(0), row(1)), "run-1", token)
    assert record.quarantine is None and record.reasons == {}
    assert listing(output) == {"data/part-000003.parquet", "commits/000003.json"}


def test_commit_without_answers_writes_a_data_file_without_rows(output: Output, token: Token) -> None:
    record = output.commit(block(row(0, failed="image_null")), "run-1", token)
    assert record.data and record.data["rows"] == 0
    assert record.tokens == {"prompt": 0, "output": 0}
    assert listing(output) == {"data/part-000003.parquet", "quarantine/part-000003.parquet", "commits/000003.json"}
    data = output.read_table("data/part-000003.parquet")
    assert (data.num_rows, data["answer"].type) == (0, ANSWER)


def test_commit_of_a_shard_that_stands_leaves_it(output: Output, token: Token) -> None:
    """An attempt that was overtaken is content with what the other one wrote."""
    first = output.commit(mixed(), "run-1", token)
    files = {name: (Path(output.uri) / name).read_bytes() for name in listing(output)}
    assert output.commit(block(row(0, attempt=2), row(1, attempt=2)), "run-1", token) == first
    assert {name: (Path(output.uri) / name).read_bytes() for name in listing(output)} == files


def test_commit_over_what_an_attempt_without_a_record_left_replaces_it(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
    output.uncommit(3)
    record = output.commit(block(row(0, attempt=2), row(1, attempt=2)), "run-1", token)
    assert (record.attempt, record.engine, record.rows_ok, record.rows_quarantined) == (2, "echo 2", 2, 0)
    assert output.read_table("data/part-000003.parquet")["id"].to_pylist() == [100, 101]
    assert output.read_table("quarantine/part-000003.parquet").num_rows == 0
    assert output.misdescribed([record]) == [] and output.unnamed([record]) == []


def test_commit_of_a_claimed_shard_writes_both_files_however_empty(output: Output, token: Token) -> None:
    output.put_json("commits/000003.json", {"claim": "somebody"})
    assert output.committed() == set() and output.records([3]) == []
    record = output.commit(block(row(0)), "run-1", token)
    assert record.data and record.quarantine
    assert (record.data["rows"], record.quarantine["rows"]) == (1, 0)
    assert output.read_table("quarantine/part-000003.parquet").column_names == [
        *("id", "stage", "error_type", "message", "attempts", "lineage")
    ]
    assert output.records() == [record]


def test_commit_anew_where_the_record_names_other_objects(output: Output, token: Token) -> None:
    first = output.commit(mixed(), "run-1", token)
    output.put_table("data/part-000003.parquet", pa.table({"id": [1]}), {})
    assert output.misdescribed([first]) == [3]
    record = output.commit(mixed(), "run-1", token)
    assert output.read_table("data/part-000003.parquet")["id"].to_pylist() == [100, 102]
    assert output.records() == [record]
    assert output.misdescribed([record]) == []


def test_commit_without_the_lease_refused_and_nothing_written(output: Output, token: Token) -> None:
    with pytest.raises(FencedError, match="This session has lost its output to another: process"):
        output.commit(mixed(), "run-1", Token("somebody else"))
    assert listing(output) == set()


def test_commit_that_loses_the_lease_on_its_way_writes_no_record(
    output: Output, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.put_if

    def put_and_lose(self: Store, uri: str, *args: Any) -> Any:
        output.store.remove(output.at("_lease.json"))
        return real(self, uri, *args)

    monkeypatch.setattr(Store, "put_if", put_and_lose)
    with pytest.raises(FencedError, match="its lease is gone"):
        output.commit(mixed(), "run-1", token)
    assert output.committed() == set()


def test_commit_of_a_shard_that_somebody_else_keeps_writing_ends(
    output: Output, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.put_if
    others: list[str] = []

    def put_after_another(self: Store, uri: str, *args: Any) -> Any:
        others.append(os.path.relpath(uri, output.uri))
        self.put(uri, b"x" * len(others))
        return real(self, uri, *args)

    monkeypatch.setattr(Store, "put_if", put_after_another)
    with pytest.raises(HerdError, match="Shard 000003 is being written by somebody else"):
        output.commit(mixed(), "run-1", token)
    assert others == ["data/part-000003.parquet", *["commits/000003.json"] * 5]
    assert output.committed() == set()


def test_commit_record_comes_last(output: Output, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[str] = []
    real = Store.put_if

    def noted(self: Store, uri: str, *args: Any) -> Any:
        put.append(os.path.relpath(uri, output.uri))
        return real(self, uri, *args)

    monkeypatch.setattr(Store, "put_if", noted)
    monkeypatch.setattr(Store, "put", None)  # no object of a shard is put without a condition
    output.commit(mixed(), "run-1", token)
    assert put == ["data/part-000003.parquet", "quarantine/part-000003.parquet", "commits/000003.json"]


def test_commit_takes_the_engine_of_the_latest_attempt(output: Output, token: Token) -> None:
    record = output.commit(block(row(0, attempt=1), row(1, attempt=2)), "run-1", token)
    assert (record.attempt, record.engine) == (2, "echo 2")


def test_merge_puts_replayed_rows_in_their_place(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
    record = output.merge(block(row(1, attempt=2), row(3, failed="image_null", attempt=2)), "run-1", token, history=[])
    assert (record.rows_in, record.rows_ok, record.rows_quarantined, record.attempt) == (5, 3, 2, 2)
    assert output.read_table("data/part-000003.parquet")["id"].to_pylist() == [100, 101, 102]
    bad = output.read_table("quarantine/part-000003.parquet")
    assert bad["id"].to_pylist() == [103, 104]
    assert bad["attempts"].to_pylist() == [2, 1]
    assert output.records() == [record]
    past = {"attempt": 1, "stage": "image", "error_type": "image_null", "message": "no", "at": NOW.isoformat()}
    assert record.history == [{"row": 1, **past}, {"row": 3, **past}]


def test_merge_adds_to_the_history_of_the_shard(output: Output, token: Token) -> None:
    first, second = ({"row": 1, "attempt": n, "stage": "engine", "error_type": "engine_death"} for n in (1, 2))
    output.commit(block(row(0), row(1, attempt=2)), "run-1", token, history=[first])
    record = output.merge(block(row(1, attempt=3)), "run-1", token, history=[second])
    assert record.history == [first, second]


def test_merge_cut_short_is_made_again(output: Output, token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data file is new, the quarantine is old, the record is gone: the row that stands in both stands once again."""
    output.commit(mixed(), "run-1", token)
    real = Store.put_if

    def no_quarantine(self: Store, uri: str, *args: Any) -> Any:
        if "/quarantine/" in uri:
            raise OSError("out of reach")
        return real(self, uri, *args)

    healed = block(row(1, attempt=2))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="out of reach"):
        patch.setattr(Store, "put_if", no_quarantine)
        output.merge(healed, "run-1", token, history=[])
    record = output.merge(healed, "run-1", token, history=[])
    assert output.read_table("data/part-000003.parquet")["id"].to_pylist() == [100, 101, 102]
    assert output.read_table("quarantine/part-000003.parquet")["id"].to_pylist() == [103, 104]
    assert (record.rows_in, [entry["row"] for entry in record.history]) == (5, [1])


def test_merge_cut_short_keeps_the_history_of_the_shard(
    output: Output, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {"row": 0, "attempt": 1, "stage": "engine", "error_type": "engine_death"}
    output.commit(block(row(0, attempt=2), row(1, failed="image_null")), "run-1", token, history=[first])
    real = Store.put_if

    def only_the_claim(self: Store, uri: str, *args: Any) -> Any:
        if "/commits/" not in uri:
            raise OSError("out of reach")
        return real(self, uri, *args)

    healed = block(row(1, attempt=2))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="out of reach"):
        patch.setattr(Store, "put_if", only_the_claim)
        output.merge(healed, "run-1", token, history=[])
    record = output.merge(healed, "run-1", token, history=[])
    assert [entry["row"] for entry in record.history] == [0, 1]


def test_merge_without_the_lease_refused_and_the_shard_stands(output: Output, token: Token) -> None:
    record = output.commit(mixed(), "run-1", token)
    with pytest.raises(FencedError):
        output.merge(block(row(1, attempt=2)), "run-1", Token("somebody else"), history=[])
    assert output.records() == [record]
    assert output.misdescribed([record]) == []


def test_merge_that_heals_all_rows_leaves_a_quarantine_without_any(output: Output, token: Token) -> None:
    output.commit(block(row(0), row(1, failed="image_null")), "run-1", token)
    record = output.merge(block(row(1, attempt=2)), "run-1", token, history=[])
    assert (record.rows_ok, record.rows_quarantined) == (2, 0)
    assert output.read_table("quarantine/part-000003.parquet").num_rows == 0
    assert record.quarantine and record.quarantine["rows"] == 0
    assert output.misdescribed([record]) == []


def test_merge_that_stops_half_way_leaves_the_shard_undone(
    output: Output, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.commit(mixed(), "run-1", token)
    real = Store.put_if

    def only_the_claim(self: Store, uri: str, *args: Any) -> Any:
        if "/commits/" not in uri:
            raise OSError("out of reach")
        return real(self, uri, *args)

    monkeypatch.setattr(Store, "put_if", only_the_claim)
    with pytest.raises(OSError, match="out of reach"):
        output.merge(block(row(1, attempt=2)), "run-1", token, history=[])
    assert output.committed() == set()


def test_records_round_trip_by_shard(output: Output, token: Token) -> None:
    records = [output.commit(block(row(0, shard=s)), "run-1", token) for s in (12, 2, 1_000_001)]
    assert output.records() == sorted(records, key=lambda r: r.shard)
    assert output.committed() == {2, 12, 1_000_001}


def test_records_of_an_empty_output_are_none(output: Output) -> None:
    assert output.records() == []
    assert output.committed() == set()


def test_committed_ignores_other_files(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
    for name in ("note.txt", "000009.json.0123.partial", "x.json"):
        (Path(output.uri) / "commits" / name).write_text("{}")
    assert output.committed() == {3}


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b'{"run_id": 1, "extra": 2}', b"\xff"])
def test_record_that_cannot_be_read_refused_with_its_place(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        CommitRecord.from_json(data, "out/commits/000001.json")
    assert str(caught.value).startswith("This commit record cannot be read: ")
    assert "(out/commits/000001.json)" in str(caught.value)


def test_parquet_tells_its_run_and_is_zstd(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
    for kind in ("data", "quarantine"):
        footer = pq.read_metadata(output.at(f"{kind}/part-000003.parquet"))
        assert footer.metadata[b"herd.run_id"] == b"run-1"
        assert footer.metadata[b"herd.schema_version"] == b"1"
        assert footer.metadata[b"herd.shard"] == b"3"
        codecs = {footer.row_group(0).column(c).compression for c in range(footer.num_columns)}
        assert codecs == {"ZSTD"}


def test_duckdb_reads_the_data(output: Output, token: Token) -> None:
    output.commit(mixed(), "run-1", token)
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
