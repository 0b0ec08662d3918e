from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.footers import make_plan
from pipeline.plan import Shard, shards_of

from .helpers import job


def write(path: Path, rows: int = 5, *, group: int = 2, **columns: list[Any]) -> None:
    table = pa.table({"id": list(range(rows)), "text": [str(n) for n in range(rows)], **columns})
    pq.write_table(table, path, row_group_size=group)


def shards(folder: Path, **changes: Any) -> list[Shard]:
    return list(shards_of(make_plan(job(input={"uri": str(folder)}, **changes))[2]))


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        shards(folder, **changes)
    return str(caught.value)


def test_make_plan_lists_row_groups_by_file_and_number(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", 1)
    write(tmp_path / "a.parquet", 5)
    found = [(Path(s.input_uri).name, s.row_group, s.first_row, s.num_rows) for s in shards(tmp_path)]
    assert found == [("a.parquet", 0, 0, 2), ("a.parquet", 1, 0, 2), ("a.parquet", 2, 0, 1), ("b.parquet", 0, 0, 1)]


def test_make_plan_takes_a_file_that_is_named_twice_once(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 1)
    config = job(input={"uri": [str(tmp_path), f"{tmp_path}/*.parquet"]})
    assert make_plan(config)[2].num_rows == 1


def test_make_plan_counts_bytes_of_the_columns_that_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 4, group=4, big=["x" * 1000 + str(n) for n in range(4)])
    config = job(input={"uri": str(tmp_path), "carry": ["id"]}, shard={"max_bytes": 1000})
    assert make_plan(config)[2].num_rows == 1
    assert make_plan(job(input={"uri": str(tmp_path)}, shard={"max_bytes": 1000}))[2].num_rows == 4


def test_make_plan_no_parquet_file_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"hello world, this is text")
    message = refused(tmp_path)
    assert message.startswith("This is not a Parquet file, or it is cut short (25 bytes): ")
    assert str(tmp_path / "a.parquet") in message


def test_make_plan_file_cut_short_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet")
    data = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(data[:-20])
    message = refused(tmp_path)
    assert "or it is cut short" in message and str(tmp_path / "b.parquet") in message


def test_make_plan_no_rows_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    assert refused(tmp_path) == f"The input has no rows in its 1 files ({tmp_path})."


def test_make_plan_other_type_in_a_later_file_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 1, label=["x"])
    write(tmp_path / "b.parquet", 1, label=[1])
    message = refused(tmp_path)
    assert f"Column `label` is int64 here and string in the first file ({tmp_path / 'b.parquet'})" in message


def test_make_plan_missing_column_in_a_later_file_refused(tmp_path: Path) -> None:
    """The column is one that is only carried, by default."""
    write(tmp_path / "a.parquet", 1, label=["x"])
    write(tmp_path / "b.parquet", 1)
    message = refused(tmp_path)
    assert "`label`" in message and str(tmp_path / "b.parquet") in message


def test_make_plan_missing_template_column_in_a_later_file_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 1, label=["x"])
    write(tmp_path / "b.parquet", 1)
    message = refused(tmp_path, prompt={"user": "{{ label }}"})
    assert "needs column `label`, which the input does not have" in message and str(tmp_path / "b.parquet") in message
