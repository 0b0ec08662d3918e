"""A run from beginning to end: plan or find the plan, let Ray Data carry the shards, and close the books.

    RunConfig -> plan -> read -> answer -> commit -> _SUCCESS

`prepare` touches footers and the output only; nothing that costs a GPU starts before it has returned. `execute` needs a
connected Ray. Both are driven by `jobs`.
"""

import base64
import json
import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline import plan
from pipeline.actor import EngineActor, EngineJob
from pipeline.columns import Columns
from pipeline.config import RunConfig, StorageConfig
from pipeline.engine.vllm_names import check_names
from pipeline.errors import ConfigError, EngineStartError, HerdError, StorageError
from pipeline.facts import host_facts, now, versions
from pipeline.footers import make_plan
from pipeline.ledger import Progress, start_ledger
from pipeline.model import ModelRef
from pipeline.output import SCHEMA_VERSION, Output
from pipeline.sink import CommitSink
from pipeline.source import ShardSource
from pipeline.storage import Store

POLL_S = 0.25
IO_TASK_CPUS = 0.25


class InterruptedRunError(HerdError):
    """The run was told to stop."""

    exit_code = 130


@dataclass(frozen=True)
class EngineResources:
    """What Ray must give one engine: the arguments of `map_batches` that place it."""

    num_cpus: float
    num_gpus: float = 0
    accelerator_type: str | None = None

    def to_ray(self) -> dict[str, Any]:
        gpus: dict[str, Any] = {"num_gpus": self.num_gpus} if self.num_gpus else {}
        if self.accelerator_type:
            gpus["accelerator_type"] = self.accelerator_type
        return {"num_cpus": self.num_cpus, **gpus}


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
    resumed: bool

    @property
    def pending(self) -> list[plan.Shard]:
        return [s for s in plan.shards_of(self.table) if s.shard not in self.committed]


def check(config: RunConfig) -> None:
    """Raises `ConfigError` for what can be known without touching storage: names of vLLM's settings."""
    check_names(config.engine, config.sampling)


def prepare(config: RunConfig, model: ModelRef, *, git_revision: str | None = None) -> PreparedRun:
    """Plans the run and records the plan in the output, or finds what an earlier session of the same job did there.

    Raises:
        ConfigError: the job cannot run on this input, or the output holds another run.
        StorageError: an input or the output is missing, forbidden or out of reach.
    """
    check(config)
    output = Output(config.output.uri, Store(config.output.uri, config.output.storage))
    columns, schema, table = make_plan(config)
    settings = plan.answer_settings(config, model.digests)
    mark = plan.fingerprint(settings, table)
    if output.has("run.json"):
        record = output.read_json("run.json")
        if record["fingerprint"] != mark:
            raise _another_run(output, record, settings, table)
        return _again(config, model, output, record, (columns, schema, table), git_revision)
    leftovers = [f.uri for f in output.store.list_folder(output.uri)]
    if leftovers and not output.has("plan.parquet"):
        raise ConfigError(
            f"The output folder holds files that are not a run's, first {leftovers[0]}",
            where=output.uri,
            todo="Choose an empty or new folder.",
        )
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
        "columns": asdict(columns),
        "read_schema": base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "model": model.to_json(),
        "shards": table.num_rows,
        "rows": int(pc.sum(table["num_rows"]).as_py()),
        "created_at": now(),
        "sessions": [_session(git_revision)],
    }
    output.put_json("run.json", record)
    return PreparedRun(config, model, output, run_id, columns, schema, table, frozenset(), resumed=False)


def prepare_resume(
    uri: str, storage: StorageConfig, resolve: Callable[[RunConfig], ModelRef], *, git_revision: str | None = None
) -> PreparedRun:
    """The run in an output folder, by its own plan: inputs are not listed again, and a file that changed since costs its
    own shards only. `resolve` finds the model, which must still have the digests that the run began with.

    Raises:
        ConfigError: there is no run, or its model is another one now.
    """
    config, record = reopen(uri, Store(uri, storage))
    output = Output(config.output.uri, Store(config.output.uri, config.output.storage))
    model = resolve(config)
    if changed := plan.differences(record["settings"]["digests"], model.digests):
        raise ConfigError(
            f"The model is not the one that the run began with: {'; '.join(changed)}",
            where=model.location,
            todo="Put that model back, or run the job on a new output.",
        )
    columns = Columns(**{k: tuple(v) if isinstance(v, list) else v for k, v in record["columns"].items()})
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(record["read_schema"])))
    table = output.read_table("plan.parquet").cast(plan.SCHEMA)
    return _again(config, model, output, record, (columns, schema, table), git_revision)


def _again(
    config: RunConfig,
    model: ModelRef,
    output: Output,
    record: dict[str, Any],
    planned: tuple[Columns, pa.Schema, pa.Table],
    git_revision: str | None,
) -> PreparedRun:
    committed = output.committed()
    if len(committed) < record["shards"]:
        record["sessions"].append(_session(git_revision))
        output.put_json("run.json", record)
    return PreparedRun(config, model, output, str(record["run_id"]), *planned, frozenset(committed), resumed=True)


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


def execute(
    run: PreparedRun, resources: EngineResources, observe: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Answers and commits every pending shard, then writes `_SUCCESS`; returns its content, the run's totals.

    `observe` is called on this thread several times a second.

    Raises:
        EngineStartError: no engine could start.
        HerdError: the run stopped before every shard was committed, and why; it can be resumed.
        InterruptedRunError: `observe` or a signal raised KeyboardInterrupt.
    """
    pending = run.pending
    rows_total = int(pc.sum(run.table["num_rows"]).as_py())
    start = Progress(
        shards_total=run.table.num_rows,
        shards_before=len(run.committed),
        rows_total=rows_total,
        rows_before=rows_total - sum(s.num_rows for s in pending),
    )
    progress = start
    if pending:
        progress = _answer(run, pending, resources, start, observe)
    return close(run, progress)


def _answer(
    run: PreparedRun,
    pending: list[plan.Shard],
    resources: EngineResources,
    start: Progress,
    observe: Callable[[Progress], None],
) -> Progress:
    ledger = start_ledger(start, run.config.limits.max_shard_attempts)
    dataset = _dataset(run, pending, resources, ledger)
    sink = CommitSink(run.config.output, run.run_id, run.resumed, ledger)
    ended = threading.Event()
    fault: list[BaseException] = []

    def carry() -> None:
        try:
            dataset.write_datasink(sink, ray_remote_args={"num_cpus": IO_TASK_CPUS})
        except BaseException as e:  # handed to the waiting thread, which knows what to say of it
            fault.append(e)
        finally:
            ended.set()

    threading.Thread(target=carry, name="herd-dataset", daemon=True).start()
    try:
        while not ended.wait(POLL_S):
            observe(ray.get(ledger.snapshot.remote()))
        progress: Progress = ray.get(ledger.snapshot.remote())
    except KeyboardInterrupt:
        done = len(run.output.committed())
        raise InterruptedRunError(
            f"Stopped with {done} of {run.table.num_rows} shards committed", todo=resume_advice(run.output.uri)
        ) from None
    observe(progress)
    if progress.engine_error:
        raise EngineStartError(progress.engine_error, todo=f"Mend it, then: {resume_advice(run.output.uri)}")
    if fault:
        raise _explained(fault[0], run)
    return progress


def _dataset(run: PreparedRun, pending: list[plan.Shard], resources: EngineResources, ledger: Any) -> Any:
    context = DataContext.get_current()
    context.target_max_block_size = None  # one block a read task: a shard is never split or merged
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    pool = run.config.pool
    source = ShardSource(pending, run.schema, run.config.input.storage, ledger)
    dataset = ray.data.read_datasource(
        source, override_num_blocks=len(pending), ray_remote_args={"num_cpus": IO_TASK_CPUS}
    )
    engines = min(pool.ceiling, len(pending))
    return dataset.map_batches(
        EngineActor,
        fn_constructor_args=(EngineJob(run.config, run.columns, run.model, run.run_id), ledger),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(
            min_size=min(pool.min, engines),
            max_size=engines,
            max_tasks_in_flight_per_actor=pool.shards_in_flight,
            max_concurrent_calls_per_actor=pool.shards_in_flight,
        ),
        **resources.to_ray(),
    )


def _explained(fault: BaseException, run: PreparedRun) -> HerdError:
    """The Herd error inside what Ray raised, or the fault's last line."""
    seen: BaseException | None = fault
    while seen is not None:
        if isinstance(seen, HerdError):
            if isinstance(seen, StorageError):
                seen.exit_code = 4
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return HerdError(f"The run failed: {lines[-1] if lines else type(fault).__name__}", todo=resume_advice(run.output.uri))


def close(run: PreparedRun, progress: Progress) -> dict[str, Any]:
    """Counts the commit records and, if none is missing, writes `_SUCCESS` and the run's last state.

    Raises:
        HerdError: shards are missing; the first ones are named with what became of them.
    """
    records = run.output.records()
    missing = run.table.num_rows - len(records)
    if missing:
        known = [f"shard {s}: {m}" for s, m in sorted(progress.failed_shards.items())[:3]]
        events = progress.events[-1:]
        raise HerdError(
            f"{missing} of {run.table.num_rows} shards were not answered. {' '.join(known + events)}",
            todo=resume_advice(run.output.uri),
        )
    reasons: dict[str, int] = {}
    for record in records:
        for reason, count in record.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    totals = {
        "run_id": run.run_id,
        "shards": len(records),
        "rows_in": sum(r.rows_in for r in records),
        "rows_ok": sum(r.rows_ok for r in records),
        "rows_quarantined": sum(r.rows_quarantined for r in records),
        "prompt_tokens": sum(r.tokens["prompt"] for r in records),
        "output_tokens": sum(r.tokens["output"] for r in records),
        "quarantine_reasons": reasons,
    }
    if progress.shards_done or not run.output.has("_SUCCESS"):
        record_now = run.output.read_json("run.json")
        record_now["sessions"][-1].update(ended_at=now(), **_session_figures(progress))
        record_now.update(status="done", totals=totals, finished_at=now())
        run.output.put_json("run.json", record_now)
        run.output.put_json("_SUCCESS", totals)
    return totals


def _session_figures(progress: Progress) -> dict[str, Any]:
    return {
        "seconds": round(progress.seconds, 2),
        "rows": progress.rows_ok + progress.rows_quarantined,
        "window_s": progress.window_s,
        "rows_per_s": round(progress.rows_per_s, 1),
        "engines": progress.engines,
        "engine_deaths": progress.engine_deaths,
        "events": progress.events,
    }


def reopen(uri: str, store: Store) -> tuple[RunConfig, dict[str, Any]]:
    """The job and the record of the run in an output folder.

    Raises:
        ConfigError: there is no run.
    """
    output = Output(uri, store)
    if not output.has("run.json"):
        raise ConfigError("There is no run in this folder (no run.json)", where=uri)
    record = output.read_json("run.json")
    return RunConfig.model_validate(record["config"]), record


def resume_advice(uri: str) -> str:
    return f"Nothing committed is lost; continue with: herd resume {uri}"
