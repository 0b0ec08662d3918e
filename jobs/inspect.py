"""Facts about jobs and runs for the commands that only look: status, verify, show, models."""

from dataclasses import asdict
from datetime import datetime
from typing import Any

from cluster.models import Profile
from pipeline import books
from pipeline.config import OutputConfig, StorageConfig
from pipeline.errors import ConfigError, before_the_run
from pipeline.facts import now
from pipeline.live import read_live
from pipeline.outcome import compared, spent
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
def status_facts(uri: str, storage: StorageConfig) -> dict[str, Any]:
    """How far a run is, from its records. `live` holds what the latest session said of itself, with `age_s`, the seconds
    since; null where nothing of this run says anything."""
    output = open_output(uri, storage)
    begun, record = books.reopen(uri, output.store)
    records = output.records()
    last = max((r.committed_at for r in records), default=None)
    age = (datetime.fromisoformat(now()) - datetime.fromisoformat(last)).total_seconds() if last else None
    is_done, took = output.has("_SUCCESS"), spent(record["sessions"], begun)
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
        "spent": took,
        "estimate": record.get("estimate"),
        "compared": compared(
            record.get("estimate"), took if is_done else None, record.get("totals") if is_done else None
        ),
        "live": read_live(output, str(record["run_id"])),
        "next": f"herd {'verify' if is_done else 'resume'} {OutputConfig(uri=uri, storage=storage).arguments}",
    }


@before_the_run()
def verdict(uri: str, storage: StorageConfig) -> Verdict:
    """The proof of completeness."""
    return verify_output(open_output(uri, storage))


@before_the_run()
def rows(
    uri: str, storage: StorageConfig, limit: int, *, quarantine: bool = False, stage: str | None = None
) -> list[dict[str, Any]]:
    """Some rows of a run, answered or quarantined."""
    if stage is not None and not quarantine:
        raise ConfigError("--stage goes with --quarantine")
    output = open_output(uri, storage)
    return quarantined_rows(output, limit, stage=stage) if quarantine else answered_rows(output, limit)


def profile_facts(profile: Profile) -> dict[str, Any]:
    """A profile as plain data."""
    return asdict(profile)
