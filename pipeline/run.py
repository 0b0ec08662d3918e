"""Carries a run's pending shards through Ray Data: read -> answer -> commit, and closes the books.

    ShardSource -> map_batches(EngineActor) -> CommitSink

Needs a connected Ray. Driven by `jobs.launch`.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext

from pipeline import plan
from pipeline.actor import EngineActor, EngineJob
from pipeline.books import PreparedRun, close, resume_advice
from pipeline.errors import EngineStartError, HerdError, StorageError
from pipeline.ledger import start_ledger
from pipeline.progress import Progress
from pipeline.sink import CommitSink
from pipeline.source import ShardSource

POLL_S = 0.25
IO_TASK_CPUS = 0.25


class InterruptedRunError(HerdError):
    """The run was told to stop."""

    exit_code = 130


def execute(
    run: PreparedRun, placement: Mapping[str, Any], observe: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Answers and commits every pending shard, then writes `_SUCCESS`; returns its content, the run's totals.

    `placement` holds the arguments of `map_batches` that place one engine (`num_cpus`, `num_gpus`, ...). `observe` is
    called on this thread several times a second.

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
        progress = _answer(run, pending, placement, start, observe)
    return close(run, progress)


def _answer(
    run: PreparedRun,
    pending: list[plan.Shard],
    placement: Mapping[str, Any],
    start: Progress,
    observe: Callable[[Progress], None],
) -> Progress:
    earlier = {shard: replayed.attempts for shard, replayed in run.replayed.items()}
    ledger = start_ledger(start, run.config.limits.max_shard_attempts, earlier)
    dataset = _dataset(run, pending, placement, ledger)
    sink = CommitSink(
        run.output.uri, run.config.output.storage, run.run_id, ledger, resumed=run.resumed, merges=bool(run.replayed)
    )
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
    except ray.exceptions.RayError as e:
        raise HerdError(
            f"The Ray cluster was lost: {type(e).__name__}", todo=resume_advice(run.config.output)
        ) from None
    except KeyboardInterrupt:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)  # what it says of being cut off is no news
        done = len(run.output.committed())
        raise InterruptedRunError(
            f"Stopped with {done} of {run.table.num_rows} shards committed", todo=resume_advice(run.config.output)
        ) from None
    observe(progress)
    if fault and progress.engine_error:
        raise EngineStartError(progress.engine_error, todo=f"Mend it, then: {resume_advice(run.config.output)}")
    if fault:
        raise _explained(fault[0], run)
    return progress


def _dataset(run: PreparedRun, pending: list[plan.Shard], placement: Mapping[str, Any], ledger: Any) -> Any:
    context = DataContext.get_current()
    context.target_max_block_size = None  # one block a read task: a shard is never split or merged
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its faults reach us as exceptions
    pool = run.config.pool
    rows = {shard: replayed.rows for shard, replayed in run.replayed.items()}
    source = ShardSource(pending, run.schema, run.config.input.storage, ledger, rows)
    dataset = ray.data.read_datasource(source, override_num_blocks=len(pending), num_cpus=IO_TASK_CPUS)
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
        **placement,
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
    what = lines[-1] if lines else type(fault).__name__
    return HerdError(f"The run failed: {what}", todo=resume_advice(run.config.output))
