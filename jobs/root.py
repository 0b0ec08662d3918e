"""The root of an incremental job's outputs, for the commands that look: its runs together, and what its claims say."""

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.claims import Claim, FileKey, Ledger, is_root, misclaimed, new_files
from pipeline.columns import Columns
from pipeline.config import OutputConfig, RunConfig, StorageConfig
from pipeline.errors import ConfigError, before_the_run
from pipeline.footers import list_inputs, make_plan
from pipeline.live import read_live
from pipeline.output import Output
from pipeline.storage import Store
from pipeline.verify import MAX_PROBLEMS, Verdict, verify

COUNTS = ("shards", "shards_committed", "rows_planned", "rows_ok", "rows_quarantined", "num_problems")


@before_the_run()
def is_root_of_runs(uri: str, storage: StorageConfig) -> bool:
    """Whether a folder is the root of an incremental job's outputs."""
    return is_root(uri, Store(uri, storage))


def refuse_root(uri: str, storage: StorageConfig, verb: str) -> None:
    """Raises `ConfigError` for a root, where a command is about one run."""
    if is_root_of_runs(uri, storage):
        raise ConfigError(
            f"This folder holds the runs of an incremental job, and {verb} is about one run",
            where=uri,
            todo=f"Name one: herd {verb} {uri.rstrip('/')}/runs/000001",
        )


@dataclass
class RootVerdict:
    """The outcome of a check of all runs, and of the claims. `is_complete` means: each run is, and no problem."""

    runs: int
    runs_complete: int
    files: int
    counts: dict[str, int]
    problems: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return self.runs_complete == self.runs and not self.problems

    def to_json(self) -> dict[str, Any]:
        done = self.counts["rows_ok"] + self.counts["rows_quarantined"]
        return {
            "complete": self.is_complete,
            "runs": self.runs,
            "runs_complete": self.runs_complete,
            "files_claimed": self.files,
            **self.counts,
            "rows_missing": self.counts["rows_planned"] - done,
            "problems": self.problems[:MAX_PROBLEMS],
        }


def verify_root(uri: str, storage: StorageConfig) -> RootVerdict:
    """Checks each run, and that each claimed file is claimed and planned by exactly one.

    Raises:
        ConfigError: a claim, a plan or a record cannot be read.
    """
    ledger = Ledger(uri, Store(uri, storage))
    claims = [claim for claim in ledger.read() if claim.files]
    planned: dict[int, set[FileKey]] = {}
    verdicts: dict[str, Verdict] = {}
    problems: list[str] = []
    for claim in claims:
        if not ledger.is_begun(claim):
            problems.append(f"run {claim.name} has {len(claim.files)} files and is not begun")
            continue
        output = Output(ledger.run_uri(claim.number), ledger.store)
        planned[claim.number] = _planned(output, claim)
        verdicts[claim.name] = verify(output)
    problems += misclaimed(claims, planned, ledger.run_names())
    counts = {key: sum(getattr(v, key) for v in verdicts.values()) for key in COUNTS}
    counts["num_problems"] += len(problems)
    problems += [f"run {name}: {problem}" for name, verdict in verdicts.items() for problem in verdict.problems]
    complete = sum(v.is_complete for v in verdicts.values())
    return RootVerdict(len(claims), complete, sum(len(claim.files) for claim in claims), counts, problems)


def _planned(output: Output, claim: Claim) -> set[FileKey]:
    """The files that a run goes through; those without rows have the ETag that they were claimed with."""
    table = output.read_table("plan.parquet", ["input_uri", "input_etag"]).combine_chunks()
    found = {tuple(row.values()) for row in table.group_by(table.column_names).aggregate([]).to_pylist()}
    empty = set(output.read_run().get("empty_files", ()))
    return found | {(f.uri, f.etag) for f in claim.files if f.uri in empty}


def plan_root(config: RunConfig) -> tuple[dict[str, Any], tuple[Columns, pa.Schema, pa.Table] | None]:
    """What an incremental job would take now: facts about its root, and its columns, schema and plan; None where no file is
    new."""
    ledger = Ledger(config.output.uri, Store(config.output.uri, config.output.storage))
    claims = ledger.read()
    if not claims:
        ledger.check_root()
    listed = list_inputs(config.input, may_be_empty=bool(claims))
    fresh = new_files(listed, claims)
    facts = {
        "runs": len(claims),
        "runs_unfinished": [claim.name for claim in ledger.unfinished(claims)],
        "files_listed": len(listed),
        "files_taken_before": len(listed) - len(fresh),
    }
    return facts, make_plan(config, fresh) if fresh else None


def status_root(uri: str, storage: StorageConfig) -> dict[str, Any]:
    """How far the runs are, from their records. `live` holds what the latest unfinished one said of itself, if any did."""
    ledger = Ledger(uri, Store(uri, storage))
    claims = [claim for claim in ledger.read() if claim.files]
    unfinished = {claim.number for claim in ledger.unfinished(claims)}
    totals = dict.fromkeys(("shards", "shards_committed", "rows", "rows_ok", "rows_quarantined"), 0)
    runs, live = [], None
    for claim in claims:
        facts: dict[str, Any] = {"run": claim.name, "files": len(claim.files), "status": "claimed and not begun"}
        if ledger.is_begun(claim):
            output = Output(ledger.run_uri(claim.number), ledger.store)
            record, records = output.read_run(), output.records()
            facts |= {
                "status": "running or stopped" if claim.number in unfinished else "done",
                "shards": record["shards"],
                "shards_committed": len(records),
                "rows": record["rows"],
                "rows_ok": sum(r.rows_ok for r in records),
                "rows_quarantined": sum(r.rows_quarantined for r in records),
            }
            totals = {key: totals[key] + facts[key] for key in totals}
            if claim.number in unfinished:
                live = read_live(output, str(record["run_id"])) or live
        runs.append(facts)
    next_verb = "resume" if unfinished else "verify"
    return {
        "runs": len(claims),
        "runs_finished": len(claims) - len(unfinished),
        "files": sum(len(claim.files) for claim in claims),
        **totals,
        "by_run": runs,
        "live": live,
        "next": f"herd {next_verb} {OutputConfig(uri=uri, storage=storage).arguments}",
    }


def outputs_of(uri: str, storage: StorageConfig) -> list[Output]:
    """The runs below a root that have a plan, the latest first."""
    ledger = Ledger(uri, Store(uri, storage))
    return [Output(ledger.run_uri(c.number), ledger.store) for c in reversed(ledger.read()) if ledger.is_begun(c)]
