"""Facts about jobs and runs for the commands that only look: status, verify, show, models."""

from datetime import datetime
from typing import Any

from cluster.choose import choose
from cluster.fit import Layout, weights_bytes_per_gpu
from cluster.gpus import GIB, GPUS, GPUS_A_NODE, Gpus
from cluster.profiles import Profile
from jobs import root
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
    since; null where nothing of this run says anything. Of an incremental job's root: how far all of its runs are."""
    if root.is_root_of_runs(uri, storage):
        return root.status_root(uri, storage)
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
    """A profile as plain data, with what its engine takes on H100s by `cluster.fit`."""
    architecture = profile.architecture
    facts: dict[str, Any] = {
        "name": profile.name,
        "hub_id": profile.hub_id,
        "summary": profile.summary,
        "engine": profile.engine,
        "licence": profile.licence,
        "sources": list(profile.sources),
        "refused": profile.refused,
    }
    if architecture is None:
        return facts
    layout = Layout(profile.engine["tensor_parallel_size"], profile.engine.get("pipeline_parallel_size", 1))
    weights = weights_bytes_per_gpu(architecture, layout) / GIB
    return {
        **facts,
        "total_parameters_b": round(architecture.parameters.total / 1e9, 2),
        "experts": architecture.num_experts,
        "context_tokens": architecture.max_context,
        "weights_gib": round(architecture.weight_bytes / GIB, 1),
        "gpus": f"{layout.num_gpus} x H100 80GB ({layout}, {weights:.1f} GiB of weights a GPU)",
    }


def profile_fits(profile: Profile, gpus: Gpus | None) -> list[dict[str, Any]]:
    """Where a profile fits and how, by `cluster.choose` at its own context: on these GPUs, or on one and two nodes of
    each kind. Nothing for one that cannot be run."""
    architecture = profile.architecture
    if architecture is None:
        return []
    places = [gpus] if gpus else [Gpus(gpu, nodes, GPUS_A_NODE) for gpu in GPUS.values() for nodes in (1, 2)]
    out: list[dict[str, Any]] = []
    for place in places:
        try:
            made = choose(architecture, place, own={}, usual=profile.engine)
        except ConfigError as e:
            out.append({"gpus": str(place), "fits": False, "reason": e.what})
            continue
        kept = {k: made.engine[k] for k in ("max_model_len", "max_num_seqs", "kv_cache_dtype")}
        weights = round(made.fit.weights_bytes_per_gpu / GIB, 2)
        engine = {"engine": str(made.fit.layout), "engines": made.replicas, "weights_gib_per_gpu": weights}
        out.append({"gpus": str(place), "fits": True, **engine, **kept, "reasons": list(made.reasons)})
    return out
