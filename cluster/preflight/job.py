"""What a job needs: its settings, input, model and output tried from here, and what its nodes are asked to try."""

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cluster.fit import GPU_MEMORY_UTILIZATION
from cluster.models import hub_bytes, resolve_model
from cluster.placement import engine_resources
from cluster.preflight.findings import Finding, Need
from cluster.preflight.probe import Place, Wanted, probing_folder, try_writing
from pipeline.config import RunConfig
from pipeline.engine.vllm_names import check_names
from pipeline.errors import HerdError
from pipeline.footers import make_plan
from pipeline.model import ModelRef, check_objects
from pipeline.storage import Store

MAX_READS = 4
"""Files that each node reads from: one of each of the first folders of the input."""


@dataclass(frozen=True)
class JobCheck:
    """What came of trying a job from here: findings, and what to ask its nodes."""

    findings: list[Finding]
    wanted: Wanted


def need_of(config: RunConfig) -> Need:
    share = config.engine.vllm_args.get("gpu_memory_utilization", GPU_MEMORY_UTILIZATION)
    gpus = config.engine.num_gpus if config.pool.accelerator else 0
    return Need(vllm=config.engine.kind == "vllm", gpus=gpus, memory_share=float(share), has_job=True)


def model_place(config: RunConfig, model: ModelRef) -> Place | None:
    """Where nodes find the model; None for the echo engine, which has none."""
    return None if config.engine.kind == "echo" else Place(model.location, config.input.storage)


def output_place(config: RunConfig) -> Place:
    """The output's folder as any process may use it: relative paths are this process's own."""
    uri, storage = config.output.uri, config.output.storage
    return Place(Store(uri, storage).absolute(uri), storage)


def check_job(config: RunConfig) -> JobCheck:
    """Tries the job's settings, input, model and output as a run would, with nothing left behind."""
    found: list[Finding] = []
    files: list[str] = []
    model: list[ModelRef] = []

    def tried(what: str, attempt: Callable[[], str]) -> None:
        try:
            found.append(Finding("pass", what, attempt()))
        except HerdError as e:
            found.append(Finding("fail", what, e.what + (f" ({e.where})" if e.where else ""), e.todo or ""))

    def names() -> str:
        check_names(config.engine, config.sampling)
        return "engine and sampling names are vLLM's"

    def inputs() -> str:
        _, _, table = make_plan(config)
        files.extend(_one_a_folder(table))
        return f"{table.num_rows} shards"

    def weights() -> str:
        ref = resolve_model(config)
        if ref.location.startswith("s3://"):
            check_objects(ref.location, Store(ref.location, config.input.storage))
        model.append(ref)
        return f"{ref.name}, weights {ref.weights_digest or 'none'}"

    tried("settings", names)
    tried("input", inputs)
    tried("model", weights)
    tried("output", lambda: try_writing(output_place(config)))
    need = ", ".join(f"{k} {v}" for k, v in engine_resources(config).items())
    found.append(Finding("pass", "an engine takes", need))

    place = model_place(config, model[0]) if model else None
    is_hub = place is not None and not place.uri.startswith("s3://") and not Path(place.uri).is_absolute()
    return JobCheck(
        found,
        Wanted(
            model=place,
            model_bytes=hub_bytes(place.uri) if place is not None and is_hub else 0,
            reads=tuple(Place(uri, config.input.storage) for uri in files),
            writes=(output_place(config),),
        ),
    )


def _one_a_folder(table: pa.Table) -> list[str]:
    """The first file of each of the plan's first folders."""
    out: dict[str, str] = {}
    for uri in pc.unique(table["input_uri"]).to_pylist():
        if out.setdefault(uri.rpartition("/")[0], uri) == uri and len(out) == MAX_READS:
            break
    return list(out.values())


@contextlib.contextmanager
def shared_mark(config: RunConfig) -> Iterator[tuple[Place, ...]]:
    """A small file in or above a local output folder for the time of the block, for nodes to see whether they have the same
    folder. Nothing where the output is an object store, or cannot be written."""
    output = output_place(config)
    store = Store(output.uri, output.storage)
    if not store.is_local:
        yield ()
        return
    name = f"{probing_folder(output.uri, store)}/.herd-probe-{uuid.uuid4().hex}.partial"
    try:
        store.put(name, b"herd")
    except HerdError:
        yield ()  # that it cannot be written is told by the job's own check
        return
    try:
        yield (Place(name, output.storage),)
    finally:
        store.remove(name)
