"""The account of one shard: what was asked of it and what came back, as the rows that are committed. Pure."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.columns import Columns
from pipeline.errors import Stage
from pipeline.host.pieces import ORIGIN
from pipeline.model import ModelRef
from pipeline.output import LINEAGE, SECONDS


@dataclass(frozen=True)
class Answered:
    """A shard's rows in order. `pieces` has the columns of `pipeline.host.pieces.piece_schema` without `index`; `tries` counts for each
    row how often it was asked, from 1; `history` holds the tries that ended with the engine, as `(index, try, error_type,
    message, time)`."""

    pieces: pa.Table
    tries: list[int]
    history: list[tuple[int, int, str, str, str]]
    seconds: float


def account(
    block: pa.Table, answered: Answered, attempt: int, *, columns: Columns, model: ModelRef, run_id: str, engine: str
) -> pa.Table:
    """The shard's rows in order, with the columns that `Output.commit` takes.

    `block` has the input columns and `pipeline.source.ORIGIN`. `attempt` counts how often the shard was begun, from 1; a
    row that was asked several times within this one counts further.
    """
    attempts = pa.array([attempt + tries - 1 for tries in answered.tries], pa.int32())
    pieces = answered.pieces
    table = block.select(list(columns.carry))
    for name in pieces.column_names:
        if name not in ORIGIN:
            table = table.append_column(pieces.schema.field(name), pieces[name])
    is_answered = pieces["stage"].combine_chunks().is_null()
    table = table.append_column("attempts", pc.if_else(is_answered, pa.scalar(None, pa.int32()), attempts))
    lineage = _lineage(block, pieces, attempts, {"run_id": run_id, "model": model.name, "engine": engine}, model)
    table = table.append_column("lineage", lineage)
    return table.append_column(SECONDS, pa.repeat(pa.scalar(answered.seconds, pa.float64()), block.num_rows))


def history(block: pa.Table, answered: Answered, attempt: int) -> list[dict[str, Any]]:
    """The tries of rows that ended with the engine, as entries of the commit record's history."""
    rows = block["__herd_row"].to_pylist()
    return [
        {
            "row": rows[index],
            "attempt": attempt + tries - 1,
            "stage": str(Stage.ENGINE),
            "error_type": error_type,
            "message": message,
            "at": at,
        }
        for index, tries, error_type, message, at in answered.history
    ]


def _lineage(
    block: pa.Table, pieces: pa.Table, attempts: pa.Array, names: dict[str, str], model: ModelRef
) -> pa.StructArray:
    def same(value: Any, kind: pa.DataType) -> pa.Array:
        return pa.repeat(pa.scalar(value, kind), block.num_rows)

    def origin(name: str, kind: pa.DataType) -> pa.Array:
        return block[f"__herd_{name}"].combine_chunks().cast(kind)

    values = {
        **{name: same(value, pa.string()) for name, value in names.items()},
        "shard": origin("shard", pa.int32()),
        "input_uri": origin("uri", pa.string()),
        "input_etag": origin("etag", pa.string()),
        "row_group": origin("row_group", pa.int32()),
        "row": origin("row", pa.int64()),
        "request_sha256": pieces["request_sha256"].combine_chunks(),
        "weights_digest": same(model.weights_digest, pa.string()),
        "sampling_sha256": pieces["sampling_sha256"].combine_chunks(),
        "attempt": attempts,
        "cached_from": pieces["cached_from"].combine_chunks(),
        "created_at": same(datetime.now(UTC), pa.timestamp("us", tz="UTC")),
    }
    return pa.StructArray.from_arrays([values[f.name] for f in LINEAGE], fields=list(LINEAGE))
