"""What storage and job files must not be able to do: run code. Fetching, decoding and templates have files of their own."""

import base64
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan
from pipeline.config import RunConfig, StorageConfig
from pipeline.engine.vllm import engine_args
from pipeline.footers import make_plan
from pipeline.source import read_shard


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "unpickled"


def job(folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "input": {"uri": str(folder)},
            "prompt": {"user": "{{ text }}"},
            "engine": {"kind": "echo"},
            "output": {"uri": str(folder / "out")},
        }
    )


def test_pickle_that_poses_as_a_column_type_is_not_loaded(tmp_path: Path, mark: Path) -> None:
    bait = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Evil(mark)),
    }
    schema = pa.schema([pa.field("text", pa.string(), metadata=bait)])
    pq.write_table(pa.table([["hello"]], schema=schema), tmp_path / "rows.parquet")
    _, read_schema, table = make_plan(job(tmp_path))
    (shard,) = plan.shards_of(table)
    assert read_shard(shard, read_schema, StorageConfig())["text"].to_pylist() == ["hello"]
    again = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(base64.b64encode(read_schema.serialize().to_pybytes()))))
    assert again.names == ["text"]
    assert not mark.exists()


def test_pickle_that_stands_in_a_column_stays_bytes(tmp_path: Path, mark: Path) -> None:
    pq.write_table(pa.table({"text": [pickle.dumps(Evil(mark))]}), tmp_path / "rows.parquet")
    _, read_schema, table = make_plan(job(tmp_path))
    (shard,) = plan.shards_of(table)
    (cell,) = read_shard(shard, read_schema, StorageConfig())["text"].to_pylist()
    assert isinstance(cell, bytes) and not mark.exists()
    pickle.loads(cell)
    assert mark.exists()  # the bait does bite where it is taken


def test_code_of_a_model_runs_only_where_the_job_asks_for_it(tmp_path: Path) -> None:
    config = job(tmp_path)
    assert not engine_args(config, "model").get("trust_remote_code")
    asked = RunConfig.model_validate({**config.model_dump(), "engine": {"kind": "echo", "trust_remote_code": True}})
    assert engine_args(asked, "model")["trust_remote_code"] is True
