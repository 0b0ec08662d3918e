"""A run's books: `run.json` and `plan.parquet` are opened before anything is asked, `_SUCCESS` closes them.

Nothing here needs Ray or an engine, and nothing that costs a GPU starts before `prepare` has returned. What is done is
what has a commit record; the books only say what there is to do.
"""

import base64
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plan
from pipeline.answers import answer_type
from pipeline.cache import space
from pipeline.columns import Columns
from pipeline.columns import resolve as resolve_columns
from pipeline.config import OutputConfig, RunConfig, StorageConfig
from pipeline.config_errors import parse_config
from pipeline.engine.vllm_names import check_names
from pipeline.errors import ConfigError, HerdError
from pipeline.facts import host_facts, now, versions
from pipeline.footers import make_plan
from pipeline.lease import NAME as LEASE_NAME
from pipeline.lease import Lease, check, held
from pipeline.model import ModelRef
from pipeline.outcome import compared, spent
from pipeline.output import SCHEMA_VERSION, Output
from pipeline.progress import Progress
from pipeline.storage import Store, is_partial


@dataclass(frozen=True, slots=True)
class Replayed:
    """Rows of a shard (counted within the row group) that are asked again, and the most attempts that one of them had."""

    rows: frozenset[int]
    attempts: int


@dataclass(frozen=True)
class PreparedRun:
    """A run that is planned and recorded, with the shards that are still to do."""

    config: RunConfig
    model: ModelRef
    output: Output
    run_id: str
    columns: Columns
    schema: pa.Schema
    table: pa.Table
    committed: frozenset[int]
    """Shards with a commit record, when the session began."""
    lease: Lease
    """Held from the first word written until the run is closed or given up."""
    replayed: Mapping[int, Replayed] = field(default_factory=dict)
    """For a replay: by shard, the quarantined rows to ask again."""

    def check_lease(self) -> None:
        """Raises `FencedError` unless the output is still this session's."""
        check(self.output.store, self.output.uri, self.lease.token)

    @property
    def pending(self) -> pa.Table:
        """The shards that the session has to do, in plan order; a part of the plan's table."""
        named = pa.array(sorted(self.replayed or self.committed), pa.int32())
        is_named = pc.is_in(self.table["shard"], named)
        return self.table.filter(is_named if self.replayed else pc.invert(is_named))


def prepare(
    config: RunConfig, model: ModelRef, *, git_revision: str | None = None, choice: Sequence[str] = ()
) -> PreparedRun:
    """Plans the run and records the plan in the output, or finds what an earlier session of the same job did there. From
    here on the output is this session's, until the prepared run's lease is released. `choice` says why the engine's
    settings are what they are, where they were chosen.

    Raises:
        ConfigError: the job cannot run on this input, or the output holds another run.
        StorageError: an input or the output is missing, forbidden or out of reach.
        FencedError: another session writes the output.
    """
    check_names(config.engine, config.sampling)
    if config.cache.uri is not None:
        space(config, model)
    planned = make_plan(config)
    settings = plan.answer_settings(config, model.digests)
    mark = plan.fingerprint(settings, planned[2])
    output = _output(config.output)
    if not output.has("run.json"):
        _check_ours(output)

    def record(lease: Lease) -> PreparedRun:
        if output.has("run.json"):
            earlier = output.read_run()
            if earlier["fingerprint"] != mark:
                raise _another_run(output, earlier, settings, planned[2])
            # as it was cut then: another version may cut otherwise
            return _again(config, model, output, lease, earlier, _planned(output, earlier), git_revision)
        return _open(config, model, output, lease, settings, mark, planned, git_revision, choice)

    return held(output.uri, output.store, config.limits.lease_s, record)  # type: ignore[no-any-return]


def _output(config: OutputConfig) -> Output:
    return Output(config.uri, Store(config.uri, config.storage, retry_s=config.storage.retry_s))


def _check_ours(output: Output) -> None:
    if output.has("plan.parquet"):
        return
    foreign = output.store.first_below(output.uri, lambda name: name.startswith(LEASE_NAME) or is_partial(name))
    if foreign is not None:
        raise ConfigError(
            f"The output folder holds files that are not a run's, first {foreign}",
            where=output.uri,
            todo="Choose an empty or new folder.",
        )


def _open(
    config: RunConfig,
    model: ModelRef,
    output: Output,
    lease: Lease,
    settings: dict[str, Any],
    mark: str,
    planned: tuple[Columns, pa.Schema, pa.Table],
    git_revision: str | None,
    choice: Sequence[str],
) -> PreparedRun:
    columns, schema, table = planned
    run_id = f"{config.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    output.put_table("plan.parquet", table, {"herd.run_id": run_id, "herd.schema_version": str(SCHEMA_VERSION)})
    record = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "name": config.name,
        "status": "running",
        "fingerprint": mark,
        "settings": settings,
        "config": config.model_dump(mode="json"),
        **({"engine_choice": list(choice)} if choice else {}),
        "columns": asdict(columns),
        "read_schema": base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "model": model.to_json(),
        "shards": table.num_rows,
        "rows": int(pc.sum(table["num_rows"]).as_py()),
        "created_at": now(),
        "sessions": [_session(git_revision)],
    }
    output.put_json("run.json", record)
    return PreparedRun(config, model, output, run_id, columns, schema, table, frozenset(), lease)


Amend = Callable[[RunConfig], RunConfig]


def prepare_resume(
    uri: str,
    storage: StorageConfig,
    resolve: Callable[[RunConfig], ModelRef],
    *,
    amend: Amend = lambda config: config,
    git_revision: str | None = None,
) -> PreparedRun:
    """The run in an output folder, by its own plan: inputs are not listed again, and a file that changed since costs its
    own shards only. `resolve` finds the model, which must still have the digests that the run began with. `amend` may
    change settings that change no answer: pool, limits, render threads, engine settings of speed.

    Raises:
        ConfigError: there is no run, or its model is another one now, or `amend` changed an answer's setting.
        FencedError: another session writes the output.
    """
    begun, record = _found(uri, storage)
    config = amend(begun)
    if changed := plan.differences(plan.answer_settings(begun, {}), plan.answer_settings(config, {})):
        raise ConfigError(
            f"A run goes on as it began; this would change answers: {'; '.join(changed)}",
            where=uri,
            todo="Run the changed job on a new output, or ask only quarantined rows again, with `herd replay --set`.",
        )
    model = _model_of(config, record, resolve)
    if changed := plan.differences(record["settings"]["digests"], model.digests):
        raise ConfigError(
            f"The model is not the one that the run began with: {'; '.join(changed)}",
            where=model.location,
            todo="Put that model back, or run the job on a new output.",
        )
    output = _output(config.output)

    def take(lease: Lease) -> PreparedRun:
        return _again(config, model, output, lease, output.read_run(), _planned(output, record), git_revision)

    return held(output.uri, output.store, config.limits.lease_s, take)  # type: ignore[no-any-return]


def _found(uri: str, storage: StorageConfig) -> tuple[RunConfig, dict[str, Any]]:
    """The job of the run in a folder, with the output where it was found, which need not be where it was begun."""
    config, record = reopen(uri, Store(uri, storage))
    reach = storage if storage != StorageConfig() else config.output.storage
    return config.model_copy(update={"output": OutputConfig(uri=uri, storage=reach)}), record


def _model_of(config: RunConfig, record: dict[str, Any], resolve: Callable[[RunConfig], ModelRef]) -> ModelRef:
    begun_with = record["model"]
    is_same = config.model == record["config"]["model"]
    if is_same and config.engine.kind == "vllm" and Path(begun_with["location"]).is_dir():
        # a relative path in the job holds in the folder where the run was begun, not wherever it is resumed
        return replace(resolve(config.model_copy(update={"model": begun_with["location"]})), name=begun_with["name"])
    return resolve(config)


def _planned(output: Output, record: dict[str, Any]) -> tuple[Columns, pa.Schema, pa.Table]:
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record["read_schema"])))
    return Columns.from_json(record["columns"]), schema, output.read_table("plan.parquet").cast(plan.SCHEMA)


def prepare_replay(
    uri: str,
    storage: StorageConfig,
    resolve: Callable[[RunConfig], ModelRef],
    keep: Callable[[dict[str, Any]], bool],
    *,
    amend: Amend = lambda config: config,
    git_revision: str | None = None,
) -> PreparedRun:
    """A finished run, to ask those quarantined rows again for which `keep` holds. Takes `_SUCCESS` away until it is done.

    `amend` may change how the rows are asked (prompt, model, sampling, engine, image limits), not what comes in, what is
    carried or the answer's type; the session in `run.json` says what was changed.

    A shard's commit record is taken away while its files are rewritten, so that a replay that is cut short leaves shards
    for `prepare_resume` to do as a whole, and never a row twice.

    Raises:
        ConfigError: there is no run, it is not finished, no row is asked for, or `amend` changed too much.
        FencedError: another session writes the output.
    """
    begun, record = _found(uri, storage)
    config = amend(begun)
    model = _model_of(config, record, resolve)
    old, new = ({**record["settings"], "output": None}, plan.answer_settings(config, model.digests))
    changed = plan.differences({k: old[k] for k in new}, json.loads(json.dumps(new, default=str)))
    fixed = [line for line in changed if line.startswith(("input.", "shard."))]
    if answer_type(begun.answer) != answer_type(config.answer):
        fixed.append("answer: its type")
    if fixed:
        raise ConfigError(f"A replay cannot change {'; '.join(fixed)}", where=uri, todo="Run it as a job of its own.")
    output = _output(config.output)
    _, schema, table = _planned(output, record)
    columns = resolve_columns(config, schema, where=uri)

    def take(lease: Lease) -> PreparedRun:
        run = PreparedRun(
            config, model, output, record["run_id"], columns, schema, table, frozenset(output.committed()), lease
        )
        if len(run.committed) < table.num_rows:
            raise ConfigError("The run is not finished", where=uri, todo=resume_advice(config.output))
        replayed = _replayed(output, keep)
        if not replayed:
            raise ConfigError("No quarantined row is asked for", where=uri, todo="See `herd show --quarantine`.")
        state = output.read_run()
        rows = sum(len(r.rows) for r in replayed.values())
        state["sessions"].append(
            {**_session(git_revision), "replayed": rows, "changed": changed, "model": model.to_json()}
        )
        output.put_json("run.json", {**state, "status": "running"})
        output.store.remove(output.at("_SUCCESS"))
        return replace(run, replayed=replayed)

    return held(output.uri, output.store, config.limits.lease_s, take)  # type: ignore[no-any-return]


def _replayed(output: Output, keep: Callable[[dict[str, Any]], bool]) -> dict[int, Replayed]:
    out: dict[int, Replayed] = {}
    for record in output.records():
        if record.quarantine is None or not record.rows_quarantined:
            continue
        rows = [r for r in output.read_table(record.quarantine["uri"]).to_pylist() if keep(r)]
        if rows:
            attempts = max(r["attempts"] for r in rows)
            out[record.shard] = Replayed(frozenset(r["lineage"]["row"] for r in rows), attempts)
    return out


def _again(
    config: RunConfig,
    model: ModelRef,
    output: Output,
    lease: Lease,
    record: dict[str, Any],
    planned: tuple[Columns, pa.Schema, pa.Table],
    git_revision: str | None,
) -> PreparedRun:
    committed = output.committed()
    if len(committed) < record["shards"]:
        record["sessions"].append(_session(git_revision))
        output.put_json("run.json", record)
    return PreparedRun(config, model, output, str(record["run_id"]), *planned, frozenset(committed), lease)


def _session(git_revision: str | None) -> dict[str, Any]:
    return {"started_at": now(), **host_facts(), "versions": versions(), "git_revision": git_revision}


def _another_run(output: Output, record: dict[str, Any], settings: dict[str, Any], table: pa.Table) -> ConfigError:
    changed = plan.differences(record["settings"], json.loads(json.dumps(settings, default=str)))
    if not changed:
        old = output.read_table("plan.parquet", ["input_uri", "input_etag"])
        files = [set(zip(t["input_uri"].to_pylist(), t["input_etag"].to_pylist(), strict=True)) for t in (old, table)]
        changed = [f"input files: {uri}" for uri in sorted({uri for uri, _ in files[0] ^ files[1]})]
    return ConfigError(
        f"The output holds another run, {record['run_id']}; it differs in {'; '.join(changed[:5])}",
        where=output.uri,
        todo="Choose another output.uri, or run that job again to resume it.",
    )


def close(run: PreparedRun, progress: Progress) -> dict[str, Any]:
    """Counts the commit records, holds them against the files and, if none is missing, writes `_SUCCESS` and the run's
    last state. Files that no record names go; a record that does not describe its files goes too, and its shard counts
    as missing.

    Raises:
        HerdError: shards are missing; the first ones are named with what became of them.
        FencedError: the output is another session's now.
    """
    planned = set(run.table["shard"].to_pylist())
    records = [r for r in run.output.records(planned) if r.shard in planned]
    if len(records) == len(planned):
        wrong = set(run.output.misdescribed(records))
        run.check_lease()  # whatever is looked at is looked at before the lease, and acted upon after it
        for shard in wrong:
            run.output.uncommit(shard)
        records = [r for r in records if r.shard not in wrong]
    missing = len(planned) - len(records)
    if missing:
        known = [f"shard {s}: {m}" for s, m in sorted(progress.failed_shards.items())[:3]]
        events = progress.events[-1:]
        raise HerdError(
            f"{missing} of {run.table.num_rows} shards were not answered. {'; '.join(known + events)}",
            todo=resume_advice(run.config.output),
        )
    unnamed = run.output.unnamed(records)
    run.check_lease()
    for uri in unnamed:
        run.output.store.remove(uri)
    for folder in ("data", "quarantine", "commits"):
        run.output.store.sweep(run.output.at(folder))
    totals = {
        "run_id": run.run_id,
        "shards": len(records),
        "rows_in": sum(r.rows_in for r in records),
        "rows_ok": sum(r.rows_ok for r in records),
        "rows_quarantined": sum(r.rows_quarantined for r in records),
        "prompt_tokens": sum(r.tokens["prompt"] for r in records),
        "output_tokens": sum(r.tokens["output"] for r in records),
        "rows_reused": sum(r.rows_reused for r in records),
        "rows_cached": sum(r.rows_cached for r in records),
        "quarantine_reasons": dict(sum((Counter(r.reasons) for r in records), Counter())),
    }
    store, names = run.output.store, [run.output.at("run.json"), run.output.at("_SUCCESS")]
    stood = [store.find_one(name) for name in names]
    record = run.output.read_run()
    has_ended_now = bool(progress.shards_done or stood[1] is None)
    if has_ended_now:
        record["sessions"][-1].update(ended_at=now(), **_session_figures(progress))
    took, estimate = spent(record["sessions"], run.config), record.get("estimate")
    totals |= {"spent": took, "estimate": estimate, "compared": compared(estimate, took, totals)}
    if has_ended_now:
        kept = {key: value for key, value in totals.items() if key != "estimate"}  # which stands beside them there
        record.update(status="done", totals=kept, finished_at=now())
        run.check_lease()
        for name, value, expected in zip(names, (record, totals), stood, strict=True):
            if store.put_if(name, json.dumps(value, indent=1, default=str).encode(), expected) is None:
                raise run.lease.fenced()
    return totals


def give_up(run: PreparedRun, progress: Progress, why: str) -> None:
    """Writes down how a session ended that did not finish the run, unless the output is another's by now."""
    with contextlib.suppress(HerdError):
        run.check_lease()
        record = run.output.read_run()
        record["sessions"][-1].update(ended_at=now(), ended_by=why, **_session_figures(progress))
        run.output.put_json("run.json", record)


def _session_figures(progress: Progress) -> dict[str, Any]:
    return {
        "seconds": round(progress.seconds, 2),
        "rows": progress.rows_ok + progress.rows_quarantined,
        "window_s": progress.window_s,
        "rows_per_s": round(progress.rows_per_s, 1),
        "engines": progress.engines,
        "engine_deaths": progress.engine_deaths,
        "events": progress.events,
        **progress.views(),
    }


def reopen(uri: str, store: Store) -> tuple[RunConfig, dict[str, Any]]:
    """The job and the record of the run in an output folder.

    Raises:
        ConfigError: there is no run, or its record cannot be read.
    """
    output = Output(uri, store)
    record = output.read_run()
    return parse_config(record["config"], where=output.at("run.json")), record


def resume_advice(output: OutputConfig) -> str:
    return f"Nothing committed is lost; continue with: herd resume {output.arguments}"
