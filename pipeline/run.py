"""Carries a run's pending shards through Ray Data: read -> answer -> commit, in bundles, and closes the books.

    ShardSource -> map_batches(EngineActor)

Where runs share answers, a pass over the cache (`pipeline.recall`) goes first, and engines start for what it leaves.

An engine actor commits what it has answered itself: an answer that travelled on to a write task would die with its node,
and its shard would be asked again.

Needs a connected Ray. Driven by `jobs.launch`.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.actor import COMMITTING, EngineActor
from pipeline.books import PreparedRun, close, give_up, resume_advice
from pipeline.budget import BudgetError, overspent
from pipeline.bundles import bundles, in_order, tail
from pipeline.cache import AnswerCache
from pipeline.committer import ActorJob
from pipeline.config import RunConfig
from pipeline.errors import EngineStartError, HerdError
from pipeline.host.process import EngineJob
from pipeline.lease import FencedError
from pipeline.ledger import start_ledger
from pipeline.live import LiveFile
from pipeline.placement import Placement
from pipeline.progress import Progress
from pipeline.recall import Recaller
from pipeline.report import examples_of
from pipeline.source import ShardSource
from pipeline.storage import Store

POLL_S = 0.25
CUT_S = 15.0
"""How long a run that is cut off waits at most for Ray Data to end what it has under way."""
IO_TASK_CPUS = 0.25
RECALLERS = 4
ENGINE_VARIABLES = ("VLLM_", "NCCL_", "HF_")
"""Settings in the environment of whoever starts a run that are meant for engines, wherever they are."""
HOST_VARIABLES = ("VLLM_HOST_IP", "VLLM_PORT")


class InterruptedRunError(HerdError):
    """The run was told to stop."""

    exit_code = 130


class _CutOff(ExecutionCallback):  # type: ignore[misc]
    """Ends an execution of Ray Data from outside it, which otherwise would go on while its cluster is taken down."""

    asked = threading.Event()

    def on_execution_step(self, executor: Any) -> None:
        if self.asked.is_set():
            raise RuntimeError("The run was cut off")


def execute(
    run: PreparedRun, placement: Placement, observe: Callable[[Progress], None] = lambda progress: None
) -> dict[str, Any]:
    """Answers and commits every pending shard, then writes `_SUCCESS`; returns its content, the run's totals.

    `observe` is called on this thread several times a second, and may end the run with an EngineStartError.

    Raises:
        EngineStartError: no engine could start, or found a place.
        HerdError: the run stopped before every shard was committed, and why; it can be resumed.
        InterruptedRunError: `observe` or a signal raised KeyboardInterrupt.
        BudgetError: so many rows are quarantined that the run ended early.
        FencedError: another session took the output over.
    """
    pending = run.pending
    rows_total = int(pc.sum(run.table["num_rows"]).as_py())
    start = Progress(
        shards_total=run.table.num_rows,
        shards_before=len(run.committed),
        rows_total=rows_total,
        rows_before=rows_total - int(pc.sum(pending["num_rows"]).as_py() or 0),
    )
    progress = start
    if pending.num_rows:
        progress = _answer(run, placement, start, observe)
    return close(run, progress)


def _answer(
    run: PreparedRun,
    placement: Placement,
    start: Progress,
    observe: Callable[[Progress], None],
) -> Progress:
    earlier = {shard: replayed.attempts for shard, replayed in run.replayed.items()}
    ledger = start_ledger(start, run.config.limits.max_shard_attempts, earlier)
    ended = threading.Event()
    fault: list[BaseException] = []

    def carry() -> None:
        try:
            for dataset in _passes(run, placement, ledger):
                for _ in dataset.iter_internal_ref_bundles():
                    pass  # what comes out says that shards are committed, as the ledger has heard already
        except BaseException as e:  # handed to the waiting thread, which knows what to say of it
            fault.append(e)
        finally:
            ended.set()

    carrier = threading.Thread(target=carry, name="herd-dataset", daemon=True)
    _CutOff.asked.clear()
    carrier.start()
    live = LiveFile(run.output, run.run_id, run.check_lease)
    progress: Progress = start
    try:
        while not ended.wait(POLL_S):
            progress = ray.get(ledger.snapshot.remote())
            live.offer(progress)
            observe(progress)
            if run.lease.is_lost.is_set():
                raise run.lease.fenced()
            if why := overspent(
                run.config.limits,
                rows_total=start.rows_total,
                rows_done=progress.rows_ok + progress.rows_quarantined,
                rows_quarantined=progress.rows_quarantined,
            ):
                progress = _drained(run, ledger, ended, progress)
                raise _overspent(run, why, progress)
            ledger.drain.remote(list(ray._private.state.state.get_draining_nodes()))
        progress = ray.get(ledger.snapshot.remote())
        observe(progress)
    except ray.exceptions.RayError as e:
        raise HerdError(
            f"The Ray cluster was lost: {type(e).__name__}", todo=resume_advice(run.config.output)
        ) from None
    except EngineStartError as e:
        give_up(run, progress, str(e))
        raise _explained(e, run) from None
    except KeyboardInterrupt:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)  # what it says of being cut off is no news
        progress = _drained(run, ledger, ended, progress)
        give_up(run, progress, "interrupted")
        done = len(run.output.committed())
        raise InterruptedRunError(
            f"Stopped with {done} of {run.table.num_rows} shards committed", todo=resume_advice(run.config.output)
        ) from None
    finally:
        _CutOff.asked.set()
        carrier.join(CUT_S)
        live.close(progress)
    if fault:
        error = _explained(ray.get(ledger.fault.remote()) or fault[0], run)
        give_up(run, progress, str(error))
        raise error
    return progress


def _drained(run: PreparedRun, ledger: Any, ended: threading.Event, progress: Progress) -> Progress:
    """Lets no shard begin any more, gives those in flight `limits.drain_s` to be committed, and tells how far it came,
    beyond `progress`. A second interrupt cuts it short."""
    deadline = time.monotonic() + run.config.limits.drain_s
    try:
        ray.get(ledger.stop.remote())
        progress = ray.get(ledger.snapshot.remote())
        while progress.shards_in_flight and time.monotonic() < deadline and not ended.wait(POLL_S):
            progress = ray.get(ledger.snapshot.remote())
    except (KeyboardInterrupt, ray.exceptions.RayError):
        pass
    return progress


def _overspent(run: PreparedRun, why: str, progress: Progress) -> BudgetError:
    """The error of a run that ends early, with the commonest reasons and an example of each."""
    commonest = sorted(progress.reasons, key=lambda reason: -progress.reasons[reason])[:3]
    examples = examples_of(run.output, commonest)
    said = [f"{progress.reasons[r]:,} x {r}" + (f" ({examples[r]})" if r in examples else "") for r in commonest]
    give_up(run, progress, why)
    return BudgetError(
        f"{why}. Commonest: {'; '.join(said)}",
        todo=f"Mend the job and run it on a new output, or allow more: {resume_advice(run.config.output)} "
        "--set limits.max_quarantined_fraction=1",
    )


def _passes(run: PreparedRun, placement: Placement, ledger: Any) -> Iterator[Any]:
    """The datasets that carry the run, one after the other: what the answer cache knows, then what engines are asked."""
    _set_context()
    config, pending = run.config, run.pending
    if config.cache.uri is not None:
        uri = Store(config.cache.uri, config.cache.storage).absolute(
            config.cache.uri
        )  # actors have folders of their own
        config = config.model_copy(update={"cache": config.cache.model_copy(update={"uri": uri})})
        if not run.replayed and not AnswerCache(config, run.model).is_empty():
            actors = min(RECALLERS, pending.num_rows)
            source, job = _work(run, config, placement, pending, ledger, lanes=actors, engines=1)
            yield source.map_batches(
                Recaller,
                fn_constructor_args=(job, ledger),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=1, max_size=actors),
                num_cpus=IO_TASK_CPUS,
                **placement.reads,
            )
            known = pa.array(sorted(run.output.committed()), pa.int32())
            pending = pending.filter(pc.invert(pc.is_in(pending["shard"], known)))
    if pending.num_rows:
        pool = config.pool
        engines = min(pool.ceiling, pending.num_rows)
        in_hand = pool.shards_in_flight + COMMITTING
        source, job = _work(run, config, placement, pending, ledger, lanes=engines * in_hand, engines=engines)
        ledger.engines_wanted.remote()
        # `map_batches` itself refuses GPUs without a batch size, and with one it would join and split bundles
        yield source.map_batches_internal(
            EngineActor,
            fn_constructor_args=(job, ledger),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                min_size=min(pool.min, engines),
                max_size=engines,
                max_tasks_in_flight_per_actor=in_hand,
                max_concurrent_calls_per_actor=in_hand,
            ),
            **placement.actor,
        )


def _set_context() -> None:
    context = DataContext.get_current()
    context.target_max_block_size = None  # one block a read task: a bundle is never split or merged
    context.enable_progress_bars = False
    context.custom_execution_callback_classes = [_CutOff]
    context.print_on_execution_start = False
    # a pool grows when its engines have in hand what they can take: Ray Data's own threshold asks for 1.75 times that
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its faults reach us as exceptions


def _work(
    run: PreparedRun,
    config: RunConfig,
    placement: Placement,
    pending: pa.Table,
    ledger: Any,
    *,
    lanes: int,
    engines: int,
) -> tuple[Any, ActorJob]:
    """A dataset that reads pending shards, for `lanes` bundles at work at a time, and what its actors need to know."""
    ordered = in_order(pending)
    packed = bundles(ordered, lanes)
    rows = {shard: replayed.rows for shard, replayed in run.replayed.items()}
    dataset = ray.data.read_datasource(
        ShardSource(packed, run.schema, config.input.storage, ledger, rows),
        override_num_blocks=len(packed),
        num_cpus=IO_TASK_CPUS,
        **placement.reads,
        # each is a process to start first; a bundle lasts an engine for longer than it takes to read
        concurrency=min(len(packed), engines + 1),
    )
    job = ActorJob(
        EngineJob(
            config,
            run.columns,
            run.model,
            run.run_id,
            engines_per_node=placement.engines_per_node(engines),
            gang=placement.gang,
            fork_server=placement.fork_server,
            variables=_for_engines(os.environ),
            omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
        ),
        run.run_id,
        run.output.uri,
        run.lease.token,
        max_rows=int(pc.max(run.table["num_rows"]).as_py()),
        merges=bool(run.replayed),
        tail=tail(ordered, lanes),
    )
    return dataset, job


def _for_engines(environment: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environment.items() if k.startswith(ENGINE_VARIABLES) and k not in HOST_VARIABLES}


def _explained(fault: BaseException, run: PreparedRun) -> HerdError:
    """The error that ends the run, with what to do: a Herd error that was reported, or the last line of what Ray raised."""
    advice = resume_advice(run.config.output)
    if isinstance(fault, FencedError):
        return fault
    if isinstance(fault, HerdError):
        error = type(fault)(fault.what, where=fault.where, todo=f"{fault.todo} {advice}" if fault.todo else advice)
        error.exit_code = HerdError.exit_code
        return error
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return HerdError(f"The run failed: {lines[-1] if lines else type(fault).__name__}", todo=advice)
