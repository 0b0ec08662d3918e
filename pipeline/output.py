"""What a run leaves behind: the names, schemas and records under `output.uri`, and the order in which they appear.

    run.json  plan.parquet                      before any engine starts
    data/part-<shard>.parquet                   then for each shard its answered rows,
    quarantine/part-<shard>.parquet             its quarantined rows,
    commits/<shard>.json                        and last the record that makes both count
    _SUCCESS                                    when every planned shard has its record

(`_lease.json` and `progress.json` come and go beside them, see `pipeline.lease` and `pipeline.live`.)

Each object is put whole or not at all, and names depend on the shard alone, so writing a shard again replaces what an
earlier attempt left. A reader who trusts only shards with a commit record never sees half a shard.

Every put of a shard names the object that it expects to replace, and the commit record's object is also where attempts at
a shard claim it. The first attempt expects nothing to stand anywhere. Whoever finds that something does looks at both
files, replaces what stands for the record by a claim of its own, and then replaces files and claim. Claims are in order,
so of several attempts the one that claimed last is the only one whose expectations still hold: whatever an earlier one
sends yet (it slept, its node was cut off, another session took its place) is refused by the store.
"""

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, HerdError
from pipeline.lease import Token, check
from pipeline.parquet import GarbledError, from_parquet, to_parquet
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
        ("cached_from", pa.string()),
    ]
)
"""Where a row's answer comes from. `row` counts from 0 within the row group. `request_sha256` and `sampling_sha256` are
null for a row that failed before it could be asked. `cached_from` is null for a row that was asked itself; else it is the
run that asked the same for another row: this one, or an earlier one whose answers were kept."""

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
    history: list[dict[str, Any]] = field(default_factory=list)
    """Tries of rows before the one that stands: row, attempt, stage, error_type, message, at."""
    committed_at: str = ""
    rows_reused: int = 0
    """Rows that were given the answer to another row of the run, and, in `rows_cached`, of an earlier run."""
    rows_cached: int = 0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "CommitRecord":
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as e:
            raise ConfigError(f"This commit record cannot be read: {e}", where=where) from None


MAX_CONFLICTS = 6
KINDS = ("data", "quarantine")
HISTORY_KEY = "herd.history"
"""Where a shard's files repeat the history of its record, as JSON, for whoever finds them without a record."""
CLAIM_BYTES = 64
"""Objects in `commits/` of at most this size are claims; a record is many times larger."""


def _claim() -> bytes:
    return json.dumps({"claim": uuid.uuid4().hex}).encode()


def _is_claim(data: bytes) -> bool:
    try:
        return len(data) <= CLAIM_BYTES and list(json.loads(data)) == ["claim"]
    except (ValueError, TypeError):
        return False


Parts = dict[str, FileInfo | None]
"""What stands for a shard's files, by kind."""

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
        self.uri, self.store = store.absolute(uri), store

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
        """Writes a Parquet object, see `to_parquet`."""
        return self.store.put(self.at(name), to_parquet(table, metadata))

    def read_table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """A Parquet file of the run, or some columns of it.

        Raises:
            ConfigError: it is not Parquet, or it is cut short.
        """
        try:
            return from_parquet(self.store, self.at(name), lambda file: file.read(columns=columns))
        except GarbledError as e:
            raise _unreadable(self.at(name), e) from None

    def committed(self) -> set[int]:
        """Shards that have a commit record, from one listing."""
        return {shard for shard, size in self._listed() if size > CLAIM_BYTES}

    def _listed(self) -> list[tuple[int, int]]:
        """Shard and size of each object in `commits/`, by shard."""
        files = ((f.uri.rsplit("/", 1)[-1], f.size) for f in self.store.list_folder(self.at("commits")))
        return sorted((int(n[:-5]), size) for n, size in files if n.endswith(".json") and n[:-5].isdigit())

    def records(self, planned: Iterable[int] = ()) -> list[CommitRecord]:
        """The commit records, by shard. A file under another shard's name is not one. `planned` as below."""
        return [r for number, r in sorted(self.numbered_records(planned).items()) if r.shard == number]

    def numbered_records(self, planned: Iterable[int] = ()) -> dict[int, CommitRecord]:
        """What stands in the files of `commits/`, by the shard that the file is named for. Records of `planned` shards
        that the listing does not show are asked for by name, since a listing may lag behind.

        Raises:
            ConfigError: a file is neither a commit record nor a claim.
        """
        shards = [shard for shard, _ in self._listed()]
        read = zip(shards, self.store.read_many([self._record_uri(s) for s in shards]), strict=True)
        found = {s: CommitRecord.from_json(data, self._record_uri(s)) for s, data in read if not _is_claim(data)}
        for shard in set(planned) - found.keys():
            if (record := self._standing(shard)[1]) is not None:
                found[shard] = record
        return found

    def _record_uri(self, shard: int) -> str:
        return self.at(f"commits/{shard:06d}.json")

    def _standing(self, shard: int) -> tuple[FileInfo | None, CommitRecord | None]:
        """What stands for a shard's record: the object, and the record unless it is a claim."""
        uri = self._record_uri(shard)
        info = self.store.find_one(uri)
        data = self.store.read(uri) if info is not None and info.size > CLAIM_BYTES else b""
        return info, CommitRecord.from_json(data, uri) if len(data) > CLAIM_BYTES else None

    def _parts(self, shard: int) -> Parts:
        return {kind: self.store.find_one(self.at(self.part(kind, shard))) for kind in KINDS}

    def commit(
        self, block: pa.Table, run_id: str, token: Token, *, history: Sequence[dict[str, Any]] = ()
    ) -> CommitRecord:
        """Writes one shard's rows and then its record, or finds that another attempt at it has been faster.

        `block` has the carried columns, `answered_fields`, `QUARANTINED_FIELDS`, `lineage` and `SECONDS`; a row is
        quarantined where `stage` is not null.

        Raises:
            FencedError: the output is another session's now.
            HerdError: another attempt keeps writing the same shard.
        """
        shard = int(block["lineage"][0]["shard"].as_py())
        is_first = True
        for _ in range(MAX_CONFLICTS):
            expected: Parts = dict.fromkeys(KINDS) if is_first else self._parts(shard)
            check(self.store, self.uri, token)
            info, record = self._standing(shard)
            if record is not None and self._describes(record):
                return record
            if info is None or not is_first:
                made = self._write(block, shard, run_id, token, history, expected, info, claims=not is_first)
                if made is not None:
                    return made
            is_first = False
        raise HerdError(f"Shard {shard:06d} is being written by somebody else", where=self.uri)

    def _write(
        self,
        block: pa.Table,
        shard: int,
        run_id: str,
        token: Token,
        history: Sequence[dict[str, Any]],
        expected: Parts,
        info: FileInfo | None,
        *,
        claims: bool,
    ) -> CommitRecord | None:
        """Puts a shard's files where `expected` stand and its record where `info` stands, claiming the shard first if
        asked; None where another attempt came between.

        The data file is always written, if need be without a row: it is what a first attempt that slept runs into.
        """
        uri = self._record_uri(shard)
        if claims:
            info = self.store.put_if(uri, _claim(), info)
            if info is None:
                return None
        failed = pc.is_valid(block["stage"])
        ok = block.filter(pc.invert(failed)).drop_columns([*(f.name for f in QUARANTINED_FIELDS), SECONDS])
        bad = block.filter(failed).drop_columns([*(f.name for f in answered_fields(pa.string())), SECONDS])
        metadata = {"herd.run_id": run_id, "herd.schema_version": str(SCHEMA_VERSION), "herd.shard": str(shard)}
        if history:
            metadata[HISTORY_KEY] = json.dumps(list(history))
        objects: dict[str, dict[str, Any] | None] = dict.fromkeys(KINDS)
        for kind, rows in (("data", ok), ("quarantine", bad)):
            if rows.num_rows or claims or kind == "data":
                name = self.part(kind, shard)
                put = self.store.put_if(self.at(name), to_parquet(rows, metadata), expected[kind])
                if put is None:
                    return None
                objects[kind] = {"uri": name, "etag": put.etag, "size": put.size, "rows": rows.num_rows}
        check(self.store, self.uri, token)
        record = _record(block, shard, run_id, objects, history)
        return record if self.store.put_if(uri, record.to_json(), info) else None

    def _describes(self, record: CommitRecord) -> bool:
        """Whether the objects that a record names are the ones that stand."""
        return all(
            (found := self.store.find_one(self.at(named["uri"]))) and found.etag == named["etag"]
            for named in (record.data, record.quarantine)
            if named
        )

    def misdescribed(self, records: Iterable[CommitRecord]) -> list[int]:
        """Shards whose objects are not the ones that their records name: an overtaken writer's last request may do that
        where the store keeps no conditions. From one listing a folder; what that does not show is looked at by name."""
        listed = {f.uri: f.etag for kind in KINDS for f in self.store.list_folder(self.at(kind))}
        doubtful = [
            record
            for record in records
            if any(
                named and listed.get(self.at(named["uri"])) != named["etag"]
                for named in (record.data, record.quarantine)
            )
        ]
        return [record.shard for record in doubtful if not self._describes(record)]

    def unnamed(self, records: Iterable[CommitRecord]) -> list[str]:
        """Files of `data/` and `quarantine/` that no record names, as attempts leave them that were overtaken."""
        named = {self.at(o["uri"]) for record in records for o in (record.data, record.quarantine) if o}
        return [f.uri for kind in KINDS for f in self.store.list_folder(self.at(kind)) if f.uri not in named]

    def uncommit(self, shard: int) -> None:
        """Takes a shard's record away: the shard counts as not done."""
        self.store.remove(self._record_uri(shard))

    def merge(self, block: pa.Table, run_id: str, token: Token, *, history: Sequence[dict[str, Any]]) -> CommitRecord:
        """Puts rows of a committed shard in the place of what stands for them, and commits the shard anew.

        The old record gives way to a claim first: should this stop half-way, the shard counts as not done. The rows that
        were replaced are added to the record's history as they stood in the quarantine.

        Raises:
            FencedError: the output is another session's now.
            HerdError: somebody else keeps writing the same shard.
        """
        rows = block["lineage"].combine_chunks()
        shard = int(rows.field("shard")[0].as_py())
        for _ in range(MAX_CONFLICTS):
            info, _ = self._standing(shard)
            expected = self._parts(shard)
            check(self.store, self.uri, token)
            past: list[dict[str, Any]] = []
            parts = [block]
            for kind in (kind for kind, found in expected.items() if found):
                old = self.read_table(self.part(kind, shard))
                replaced = pc.is_in(old["lineage"].combine_chunks().field("row"), rows.field("row"))
                past.extend(json.loads((old.schema.metadata or {}).get(HISTORY_KEY.encode(), b"[]")))
                if kind == "quarantine":
                    past.extend(_tries(old.filter(replaced)))
                parts.append(_as_block(old.filter(pc.invert(replaced)), block))
            whole = pa.concat_tables(parts)
            whole = whole.take(pc.sort_indices(whole["lineage"].combine_chunks().field("row")))
            # both files may tell of the same try, and a merge that was cut short has told of some before
            told = {(h["row"], h["attempt"]): h for h in [*past, *history]}
            made = self._write(whole, shard, run_id, token, list(told.values()), expected, info, claims=True)
            if made is not None:
                return made
        raise HerdError(f"Shard {shard:06d} is being written by somebody else", where=self.uri)


def _record(
    block: pa.Table,
    shard: int,
    run_id: str,
    objects: dict[str, dict[str, Any] | None],
    history: Sequence[dict[str, Any]],
) -> CommitRecord:
    is_bad = pc.is_valid(block["stage"])
    bad = block.filter(is_bad)
    lineage = block["lineage"].combine_chunks()
    attempt = int(pc.max(lineage.field("attempt")).as_py())
    latest = pc.index(lineage.field("attempt"), attempt).as_py()
    cached_from = lineage.field("cached_from")
    shared = len(cached_from) - cached_from.null_count
    reused = int(pc.sum(pc.equal(cached_from, run_id)).as_py() or 0)
    reasons = zip(bad["stage"].to_pylist(), bad["error_type"].to_pylist(), strict=True)
    return CommitRecord(
        run_id=run_id,
        shard=shard,
        rows_in=block.num_rows,
        rows_ok=block.num_rows - bad.num_rows,
        rows_quarantined=bad.num_rows,
        tokens={k: int(pc.sum(block[f"{k}_tokens"]).as_py() or 0) for k in ("prompt", "output")},
        seconds=float(block[SECONDS][0].as_py()),
        engine=str(lineage.field("engine")[latest].as_py()),
        attempt=attempt,
        data=objects["data"],
        quarantine=objects["quarantine"],
        reasons=dict(Counter(f"{stage}/{error}" for stage, error in reasons)),
        history=list(history),
        committed_at=datetime.now(UTC).isoformat(),
        rows_reused=reused,
        rows_cached=shared - reused,
    )


def _tries(quarantined: pa.Table) -> list[dict[str, Any]]:
    """Quarantined rows as entries of a record's history."""
    return [
        {
            "row": row["lineage"]["row"],
            "attempt": row["lineage"]["attempt"],
            **{key: row[key] for key in ("stage", "error_type", "message")},
            "at": row["lineage"]["created_at"].isoformat(),
        }
        for row in quarantined.to_pylist()
    ]


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
