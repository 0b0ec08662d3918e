"""What tests of this folder read and write: rows and records of a run's output, and sentences of the command."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.conftest import Outcome


def rows_of(out: Path, kind: str = "data") -> list[dict[str, Any]]:
    """All rows of a run's `data` or `quarantine` files, in the order of shards."""
    return [row for file in sorted((out / kind).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def commits(out: Path) -> dict[int, dict[str, Any]]:
    """A run's commit records by shard."""
    return {int(f.stem): json.loads(f.read_text()) for f in sorted((out / "commits").glob("*.json"))}


def failures(out: Path) -> dict[str, str]:
    """`stage/error_type` of each quarantined row, by its `id`."""
    return {r["id"]: f"{r['stage']}/{r['error_type']}" for r in rows_of(out, "quarantine")}


def assert_ended(outcome: Outcome, code: int, *parts: str) -> None:
    """The command ended with this code and with one paragraph on stderr that has all of these parts."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert outcome.code == code, outcome
    assert len(errors) == 1 and outcome.err.rstrip().endswith(errors[0]), outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    for part in parts:
        assert part in errors[0]


def png(size: tuple[int, int] = (8, 8), colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def write_rows(folder: Path, rows: list[dict[str, Any]] | pa.Table, rows_per_group: int = 100) -> Path:
    """Writes rows as the one Parquet file of a folder, and returns the folder."""
    folder.mkdir(exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, folder / "rows.parquet", row_group_size=rows_per_group)
    return folder
