"""Facts about jobs and runs for the commands that only look: plan, status, verify, show, models."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

import pyarrow.compute as pc

from cluster.models import Profile
from cluster.placement import engine_resources
from jobs import root
from pipeline import books
from pipeline.config import OutputConfig, RunConfig, StorageConfig
from pipeline.engine.vllm_names import check_names
from pipeline.errors import ConfigError, before_the_run
from pipeline.facts import now
from pipeline.footers import make_plan
from pipeline.live import read_live
from pipeline.output import Output
from pipeline.report import answered_rows, quarantined_rows
from pipeline.storage import Store
from pipeline.verify import Verdict
from pipeline.verify import verify as verify_output


def open_output(uri: str, storage: StorageConfig) -> Output:
    """The output folder of a run.

    Raises:
        ConfigError: there is no run in it, or it is out of reach.
    """
    output = Output(uri, Store(uri, storage))
    books.reopen(uri, output.store)
    return output


@before_the_run()
def plan_facts(config: RunConfig) -> dict[str, Any]:
    """What a job would do, from footers alone. Raises as `pipeline.books.prepare`."""
    check_names(config.engine, config.sampling)
    of_root: dict[str, Any] = {}
    if config.input.incremental:
        of_root, schema, carried, table = root.plan_root(config)
    else:
        columns, schema, table = make_plan(config)
        carried = list(columns.carry)
    per_shard = table["num_rows"]
    resources = engine_resources(config)
    return {
        "name": config.name,
        **of_root,
        "num_files": len(pc.unique(table["input_uri"])),
        "num_rows": pc.sum(per_shard).as_py() or 0,
        "num_shards": table.num_rows,
        "rows_per_shard": {"min": pc.min(per_shard).as_py(), "max": pc.max(per_shard).as_py()},
        "num_bytes": pc.sum(table["num_bytes"]).as_py() or 0,
        "columns_read": [f"{f.name}: {f.type}" for f in schema],
        "columns_carried": carried,
        "engines": {"min": config.pool.min, "max": config.pool.ceiling, **resources},
        "output": config.output.uri,
    }


@before_the_run()
def status_facts(uri: str, storage: StorageConfig) -> dict[str, Any]:
    """How far a run is, from its records. `live` holds what the latest session said of itself, with `age_s`, the seconds
    since; null where nothing of this run says anything. Of an incremental job's root: how far all of its runs are."""
    if root.is_root_of_runs(uri, storage):
        return {**root.status_root(uri, storage), "live": None}
    output = open_output(uri, storage)
    record = output.read_run()
    records = output.records()
    last = max((r.committed_at for r in records), default=None)
    age = (datetime.fromisoformat(now()) - datetime.fromisoformat(last)).total_seconds() if last else None
    is_done = output.has("_SUCCESS")
    return {
        "run_id": record["run_id"],
        "status": "done" if is_done else "running or stopped",
        "shards": record["shards"],
        "shards_committed": len(records),
        "rows": record["rows"],
        "rows_ok": sum(r.rows_ok for r in records),
        "rows_quarantined": sum(r.rows_quarantined for r in records),
        "prompt_tokens": sum(r.tokens["prompt"] for r in records),
        "output_tokens": sum(r.tokens["output"] for r in records),
        "seconds_since_last_commit": None if age is None else round(age, 1),
        "model": record["model"]["name"],
        "weights_digest": record["model"]["weights_digest"],
        "live": read_live(output, str(record["run_id"])),
        "next": f"herd {'verify' if is_done else 'resume'} {OutputConfig(uri=uri, storage=storage).arguments}",
    }


@before_the_run()
def verdict(uri: str, storage: StorageConfig) -> Verdict | root.RootVerdict:
    """The proof of completeness: of a run, or of all runs of an incremental job's root."""
    if root.is_root_of_runs(uri, storage):
        return root.verify_root(uri, storage)
    return verify_output(open_output(uri, storage))


@before_the_run()
def rows(
    uri: str, storage: StorageConfig, limit: int, *, quarantine: bool = False, stage: str | None = None
) -> list[dict[str, Any]]:
    """Some rows of a run, answered or quarantined; of an incremental job's root, of its latest runs."""
    if stage is not None and not quarantine:
        raise ConfigError("--stage goes with --quarantine")
    is_root = root.is_root_of_runs(uri, storage)
    found: list[dict[str, Any]] = []
    for output in root.outputs_of(uri, storage) if is_root else [open_output(uri, storage)]:
        left = limit - len(found)
        if left:
            found += quarantined_rows(output, left, stage=stage) if quarantine else answered_rows(output, left)
    return found


def profile_facts(profile: Profile) -> dict[str, Any]:
    """A profile as plain data."""
    return asdict(profile)
