"""Proves from a run's own files that every planned row stands exactly once, in data or in quarantine.

Reads the plan, the commit records, the listing, and of each Parquet file only the footer and three members of the lineage.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import plan
from pipeline.errors import ConfigError
from pipeline.output import CommitRecord, Output
from pipeline.storage import CONCURRENCY, FileInfo

MAX_PROBLEMS = 20
LINEAGE_KEYS = ["lineage.shard", "lineage.row_group", "lineage.row"]


@dataclass
class Verdict:
    """The outcome of a check. `is_complete` means: no problem, nothing pending, and `_SUCCESS` agrees."""

    run_id: str
    shards: int
    shards_committed: int
    rows_planned: int
    rows_ok: int = 0
    rows_quarantined: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)
    has_success: bool = False

    @property
    def is_complete(self) -> bool:
        return self.has_success and self.num_problems == 0 and self.shards_committed == self.shards

    def add(self, problem: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    def to_json(self) -> dict[str, Any]:
        return {
            "complete": self.is_complete,
            "run_id": self.run_id,
            "shards": self.shards,
            "shards_committed": self.shards_committed,
            "rows_planned": self.rows_planned,
            "rows_ok": self.rows_ok,
            "rows_quarantined": self.rows_quarantined,
            "rows_missing": self.rows_planned - self.rows_ok - self.rows_quarantined,
            "num_problems": self.num_problems,
            "problems": self.problems,
        }


def verify(output: Output) -> Verdict:
    """Checks a run's output; see `Verdict`.

    Raises:
        ConfigError: there is no run in the folder, or its plan or a record cannot be read.
    """
    run_id = str(output.read_run()["run_id"])
    table = output.read_table("plan.parquet").cast(plan.SCHEMA)
    numbered = output.numbered_records()
    records = {number: record for number, record in numbered.items() if record.shard == number}
    rows_planned = int(np.sum(table["num_rows"].to_numpy())) if table.num_rows else 0
    verdict = Verdict(run_id, table.num_rows, len(records), rows_planned)
    files = {
        f"{kind}/{file.uri.rsplit('/', 1)[-1]}": file
        for kind in ("data", "quarantine")
        for file in output.store.list_folder(output.at(kind))
    }
    claimed: set[str] = set()
    for r in records.values():
        claimed |= {o["uri"] for o in (r.data, r.quarantine) if o}

    def one(shard: plan.Shard) -> tuple[CommitRecord | None, list[str]]:
        record = records.get(shard.shard)
        return record, [] if record is None else _check_shard(output, shard, record, run_id, files)

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        for record, problems in pool.map(one, plan.shards_of(table)):
            for problem in problems:
                verdict.add(problem)
            if record is not None:
                verdict.rows_ok += record.rows_ok
                verdict.rows_quarantined += record.rows_quarantined
    for number, record in sorted(numbered.items()):
        if record.shard != number:
            verdict.add(f"commits/{number:06d}.json is the record of shard {record.shard:06d}")
        elif not 0 <= number < table.num_rows:
            verdict.add(f"commits/{number:06d}.json is for a shard that the plan does not have")
    is_whole = verdict.shards_committed == verdict.shards
    for name in sorted(files.keys() - claimed):
        # while shards are pending, a file without a record is what a stopped attempt left, and will be replaced
        shard = name.rsplit("-", 1)[-1].removesuffix(".parquet")
        if is_whole or (shard.isdigit() and int(shard) in records) or not shard.isdigit():
            verdict.add(f"{name} is not named by any commit record")
    verdict.has_success = output.has("_SUCCESS")
    if verdict.has_success:
        try:
            totals = output.read_json("_SUCCESS")
        except ConfigError as e:
            verdict.add(str(e))
            totals = {}
        for key in ("rows_ok", "rows_quarantined", "shards"):
            found = verdict.shards_committed if key == "shards" else getattr(verdict, key)
            if totals.get(key) != found:
                verdict.add(f"_SUCCESS says {key} = {totals.get(key)}, the records say {found}")
    return verdict


def _check_shard(
    output: Output, shard: plan.Shard, record: CommitRecord, run_id: str, files: dict[str, FileInfo]
) -> list[str]:
    problems: list[str] = []
    name = f"shard {shard.name}"
    if record.run_id != run_id:
        problems.append(f"{name}: its record is of run {record.run_id}")
    if record.rows_in != shard.num_rows or record.rows_ok + record.rows_quarantined != shard.num_rows:
        problems.append(
            f"{name}: {shard.num_rows} rows planned, its record says {record.rows_ok} answered and "
            f"{record.rows_quarantined} quarantined of {record.rows_in}"
        )
    seen: list[np.ndarray] = []
    for stored, count in ((record.data, record.rows_ok), (record.quarantine, record.rows_quarantined)):
        if stored is None:
            if count:
                problems.append(f"{name}: its record counts {count} rows and names no file for them")
            continue
        file = files.get(stored["uri"])
        if file is None:
            problems.append(f"{name}: {stored['uri']} is missing")
            continue
        if (file.size, file.etag) != (stored["size"], stored["etag"]) and not output.store.is_local:
            problems.append(f"{name}: {stored['uri']} is not the object that was committed")
        try:
            with output.store.open(output.at(stored["uri"])) as f:
                rows = pq.ParquetFile(f).read(columns=LINEAGE_KEYS)["lineage"]
        except (pa.ArrowInvalid, OSError, KeyError) as e:
            problems.append(f"{name}: {stored['uri']} cannot be read: {str(e).splitlines()[0]}")
            continue
        part = rows.combine_chunks()
        if len(part) != count:
            problems.append(f"{name}: {stored['uri']} has {len(part)} rows and its record says {count}")
        for key, expected in (("shard", shard.shard), ("row_group", shard.row_group)):
            if set(part.field(key).to_pylist()) - {expected}:
                problems.append(f"{name}: {stored['uri']} has rows of another {key}")
        seen.append(part.field("row").to_numpy())
    rows_seen = np.sort(np.concatenate(seen)) if seen else np.array([], dtype=np.int64)
    expected_rows = np.arange(shard.first_row, shard.first_row + shard.num_rows)
    if not np.array_equal(rows_seen, expected_rows):
        twice = len(rows_seen) - len(np.unique(rows_seen))
        missing = len(np.setdiff1d(expected_rows, rows_seen))
        problems.append(f"{name}: {missing} rows missing, {twice} standing twice")
    return problems
