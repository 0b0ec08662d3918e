"""What a run leaves behind: the names, schemas and records under `output.uri`, and the order in which they appear.

    run.json  plan.parquet                      before any engine starts
    data/part-<shard>.parquet                   then for each shard its answered rows,
    quarantine/part-<shard>.parquet             its quarantined rows,
    commits/<shard>.json                        and last the record that makes both count
    _SUCCESS                                    when every planned shard has its record

Each object is put whole or not at all, and names depend on the shard alone, so writing a shard again replaces what an
earlier attempt left. A reader who trusts only shards with a commit record never sees half a shard.
"""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError
from pipeline.storage import FileInfo, Store

SCHEMA_VERSION = 1

LINEAGE = pa.struct(
    [
        ("run_id", pa.string()),
        ("shard", pa.int32()),
        ("input_uri", pa.string()),
        ("input_etag", pa.string()),
        ("row_group", pa.int32()),
        ("row", pa.int64()),
        ("request_sha256", pa.string()),
        ("model", pa.string()),
        ("weights_digest", pa.string()),
        ("sampling_sha256", pa.string()),
        ("engine", pa.string()),
        ("attempt", pa.int32()),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)
"""Where a row's answer comes from. `row` counts from 0 within the row group. `request_sha256` and `sampling_sha256` are
null for a row that failed before it could be asked."""

SECONDS = "__herd_seconds"


def answered_fields(answer: pa.DataType) -> list[pa.Field]:
    """Columns of a data file after the carried ones, before `lineage`."""
    return [
        pa.field("response", pa.string()),
        pa.field("answer", answer),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("output_tokens", pa.int32()),
    ]


QUARANTINED_FIELDS = [
    pa.field("stage", pa.string()),
    pa.field("error_type", pa.string()),
    pa.field("message", pa.string()),
    pa.field("attempts", pa.int32()),
]
"""Columns of a quarantine file after the carried ones, before `lineage`."""


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One shard is done: `rows_in == rows_ok + rows_quarantined`. `data` and `quarantine` name the shard's objects (uri
    relative to the output, etag, size, rows), or are None where the shard has no such rows."""

    run_id: str
    shard: int
    rows_in: int
    rows_ok: int
    rows_quarantined: int
    tokens: dict[str, int]
    seconds: float
    engine: str
    attempt: int
    data: dict[str, Any] | None
    quarantine: dict[str, Any] | None
    reasons: dict[str, int] = field(default_factory=dict)
    committed_at: str = ""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "CommitRecord":
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as e:
            raise ConfigError(f"This commit record cannot be read: {e}", where=where) from None


RUN_KEYS = frozenset(
    {"run_id", "fingerprint", "settings", "config", "columns", "read_schema", "model", "shards", "rows", "sessions"}
)


def _unreadable(uri: str, e: Exception) -> ConfigError:
    said = str(e).splitlines() or [type(e).__name__]
    return ConfigError(f"This file of the run cannot be read: {said[0]}", where=uri, todo="Restore it from a copy.")


class Output:
    """The folder of one run. Paths in records are relative to it."""

    def __init__(self, uri: str, store: Store) -> None:
        # local folders become absolute: tasks of a run have working directories of their own
        self.uri, self.store = store.uri(store.path(uri)).rstrip("/"), store

    def at(self, name: str) -> str:
        return f"{self.uri}/{name}"

    def part(self, kind: str, shard: int) -> str:
        return f"{kind}/part-{shard:06d}.parquet"

    def put_json(self, name: str, value: Any) -> None:
        self.store.put(self.at(name), json.dumps(value, indent=1, default=str).encode())

    def read_json(self, name: str) -> Any:
        """The document in a file of the run.

        Raises:
            ConfigError: it is not JSON.
        """
        try:
            return json.loads(self.store.read(self.at(name)))
        except ValueError as e:
            raise _unreadable(self.at(name), e) from None

    def read_run(self) -> dict[str, Any]:
        """`run.json`.

        Raises:
            ConfigError: there is none, or it is not what a run writes there.
        """
        if not self.has("run.json"):
            raise ConfigError("There is no run in this folder (no run.json)", where=self.uri)
        record = self.read_json("run.json")
        missing = RUN_KEYS - record.keys() if isinstance(record, dict) else RUN_KEYS
        if missing:
            raise _unreadable(self.at("run.json"), ValueError(f"it has no {', '.join(sorted(missing))}"))
        return dict(record)

    def has(self, name: str) -> bool:
        return self.store.exists(self.at(name))

    def put_table(self, name: str, table: pa.Table, metadata: dict[str, str]) -> FileInfo:
        """Writes a Parquet object: zstd, dictionary-encoded where values repeat, `metadata` in its key-value section.

        Logical types stay plain (no Arrow dictionaries), which every reader takes.
        """
        table = table.replace_schema_metadata({k.encode(): v.encode() for k, v in metadata.items()})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return self.store.put(self.at(name), sink.getvalue().to_pybytes())

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file of the run, or some columns of it.

        Raises:
            ConfigError: it is not Parquet, or it is cut short.
        """
        try:
            with self.store.open(self.at(name)) as f:
                return pq.ParquetFile(f).read(columns=columns)
        except (pa.ArrowInvalid, pa.ArrowIOError) as e:
            raise _unreadable(self.at(name), e) from None

    def committed(self) -> set[int]:
        """Shards that have a commit record, from one listing."""
        names = (f.uri.rsplit("/", 1)[-1] for f in self.store.list_folder(self.at("commits")))
        return {int(n.removesuffix(".json")) for n in names if n.endswith(".json") and n[:-5].isdigit()}

    def records(self) -> list[CommitRecord]:
        """The commit records, by shard. A file under another shard's name is not one."""
        return [record for number, record in sorted(self.numbered_records().items()) if record.shard == number]

    def numbered_records(self) -> dict[int, CommitRecord]:
        """What stands in the files of `commits/`, by the shard that the file is named for.

        Raises:
            ConfigError: a file is no commit record.
        """
        shards = sorted(self.committed())
        uris = [self.at(f"commits/{shard:06d}.json") for shard in shards]
        read = zip(shards, self.store.read_many(uris), uris, strict=True)
        return {shard: CommitRecord.from_json(data, uri) for shard, data, uri in read}

    def commit(self, block: pa.Table, run_id: str, *, may_have_leftovers: bool) -> CommitRecord:
        """Writes one shard's rows and then its record.

        `block` has the carried columns, `answered_fields`, `QUARANTINED_FIELDS`, `lineage` and `SECONDS`; a row is
        quarantined where `stage` is not null. `may_have_leftovers` removes what an earlier attempt may have left under
        names that this one does not write.
        """
        lineage = block["lineage"].combine_chunks()
        shard = int(lineage.field("shard")[0].as_py())
        attempt = int(pc.max(lineage.field("attempt")).as_py())
        latest = pc.index(lineage.field("attempt"), attempt).as_py()
        failed = pc.is_valid(block["stage"])
        drop_ok = [f.name for f in QUARANTINED_FIELDS] + [SECONDS]
        drop_bad = [f.name for f in answered_fields(pa.string())] + [SECONDS]
        ok = block.filter(pc.invert(failed)).drop_columns(drop_ok)
        bad = block.filter(failed).drop_columns(drop_bad)
        metadata = {"herd.run_id": run_id, "herd.schema_version": str(SCHEMA_VERSION), "herd.shard": str(shard)}
        objects: dict[str, dict[str, Any] | None] = {}
        for kind, rows in (("data", ok), ("quarantine", bad)):
            name = self.part(kind, shard)
            objects[kind] = None
            if rows.num_rows:
                info = self.put_table(name, rows, metadata)
                objects[kind] = {"uri": name, "etag": info.etag, "size": info.size, "rows": rows.num_rows}
            elif may_have_leftovers:
                self.store.remove(self.at(name))
        reasons: dict[str, int] = {}
        for stage, error in zip(bad["stage"].to_pylist(), bad["error_type"].to_pylist(), strict=True):
            reasons[f"{stage}/{error}"] = reasons.get(f"{stage}/{error}", 0) + 1
        record = CommitRecord(
            run_id=run_id,
            shard=shard,
            rows_in=block.num_rows,
            rows_ok=ok.num_rows,
            rows_quarantined=bad.num_rows,
            tokens={k: int(pc.sum(ok[f"{k}_tokens"]).as_py() or 0) for k in ("prompt", "output")},
            seconds=float(block[SECONDS][0].as_py()),
            engine=str(lineage.field("engine")[latest].as_py()),
            attempt=attempt,
            data=objects["data"],
            quarantine=objects["quarantine"],
            reasons=reasons,
            committed_at=datetime.now(UTC).isoformat(),
        )
        self.store.put(self.at(f"commits/{shard:06d}.json"), record.to_json())
        return record

    def merge(self, block: pa.Table, run_id: str) -> CommitRecord:
        """Puts rows of a committed shard in the place of what stands for them, and commits the shard anew.

        The old record goes first: should this stop half-way, the shard counts as not done.
        """
        lineage = block["lineage"].combine_chunks()
        name = f"commits/{lineage.field('shard')[0].as_py():06d}.json"
        record = CommitRecord.from_json(self.store.read(self.at(name)), self.at(name))
        parts = [block]
        for stored in (record.data, record.quarantine):
            if stored is not None:
                old = self.read_table(stored["uri"])
                replaced = pc.is_in(old["lineage"].combine_chunks().field("row"), lineage.field("row"))
                parts.append(_as_block(old.filter(pc.invert(replaced)), block))
        self.store.remove(self.at(name))
        whole = pa.concat_tables(parts)
        order = pc.sort_indices(whole["lineage"].combine_chunks().field("row"))
        return self.commit(whole.take(order), run_id, may_have_leftovers=True)


def _as_block(stored: pa.Table, block: pa.Table) -> pa.Table:
    """Stored rows with the columns of a block: nulls where the file has no such column, the block's own seconds."""
    columns = {}
    for wanted in block.schema:
        if wanted.name == SECONDS:
            columns[wanted.name] = pa.repeat(block[SECONDS][0], stored.num_rows)
        elif wanted.name in stored.column_names:
            columns[wanted.name] = stored[wanted.name].cast(wanted.type)
        else:
            columns[wanted.name] = pa.nulls(stored.num_rows, wanted.type)
    return pa.Table.from_pydict(columns, schema=block.schema)
