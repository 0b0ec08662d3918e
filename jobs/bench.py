"""Finds the engine settings with which a job's own rows go fastest: a sample of them is run with one setting after another.

The sweep goes by coordinates. It begins with the job as it stands; then each axis in turn is tried at its points with the
best settings so far, and the best point is kept. Compared are rows/s over the GPUs that the engines take, so that a larger
tensor parallel size must earn its GPUs. A setting that fails is a result like another.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import yaml

from cluster.connect import connected
from cluster.models import with_profile
from cluster.room import addable_nodes, live_nodes
from jobs.choosing import gpus_of, settled
from jobs.jobfile import set_key
from jobs.launch import Launch, run_job
from pipeline.books import PreparedRun
from pipeline.config import RunConfig
from pipeline.config_errors import parse_config
from pipeline.errors import ConfigError, HerdError
from pipeline.progress import Progress
from pipeline.storage import Store

SHARDS_AN_ENGINE = 4
"""Shards of the sample that each engine gets, at least; as many as it works on at a time."""
MIN_SHARD_ROWS = 16

Setting = dict[str, Any]
"""Engine arguments over the job's own."""


@dataclass(frozen=True)
class Axis:
    """An engine argument and the values to try."""

    key: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """What came of one setting. `failure` says why there are no figures."""

    setting: Setting
    gpus: int = 0
    rows_per_s: float = 0.0
    output_tokens_per_s: float = 0.0
    start_s: float = 0.0
    busy_fraction: float = 0.0
    rows_quarantined: int = 0
    failure: str | None = None

    @property
    def score(self) -> float:
        """Rows/s a GPU, or of the whole pool where it takes none."""
        return self.rows_per_s / max(1, self.gpus)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "rows_per_s_per_gpu": self.score if self.gpus else None}


def default_axes(config: RunConfig, gpus_on_a_node: int) -> list[Axis]:
    """What is worth trying for a job where a node has so many GPUs of its accelerator; 0 for a job on CPUs."""
    if config.pool.accelerator is None:
        return [Axis("max_num_seqs", (32, 64, 128, 256)), Axis("max_num_batched_tokens", (2048, 4096, 8192))]
    axes = [Axis("max_num_seqs", (128, 256, 512, 1024)), Axis("max_num_batched_tokens", (4096, 8192, 16_384))]
    sizes = [size for size in (1, 2, 4, 8, 16) if size <= gpus_on_a_node]
    if len(sizes) > 1:
        axes += [Axis("tensor_parallel_size", tuple(sizes)), Axis("enable_expert_parallel", (False, True))]
    return [*axes, Axis("kv_cache_dtype", ("auto", "fp8"))]


def with_points(axes: Sequence[Axis], points: Mapping[str, Sequence[Any]]) -> list[Axis]:
    """The axes with a user's points in the place of the defaults, and axes that only the user has; one without points is
    left out."""
    named = {axis.key: axis for axis in axes} | {key: Axis(key, tuple(values)) for key, values in points.items()}
    order = [
        "max_num_seqs",
        "max_num_batched_tokens",
        "tensor_parallel_size",
        "enable_expert_parallel",
        "kv_cache_dtype",
    ]
    return [named[key] for key in order if key in named and named[key].values]


def best(trials: Sequence[Trial]) -> Trial | None:
    """The fastest trial, the earlier of two alike; None if none ran."""
    ran = [t for t in trials if t.failure is None]
    return max(ran, key=lambda t: t.score) if ran else None


def sweep(axes: Sequence[Axis], given: Mapping[str, Any], measure: Callable[[Setting], Trial]) -> list[Trial]:
    """Tries the job as it stands, then axis after axis; `given` holds the job's own engine arguments. No setting is tried
    twice."""
    trials = [measure({})]
    for axis in axes:
        so_far = best(trials)
        setting = so_far.setting if so_far else {}
        for value in axis.values:
            wanted = {**setting, axis.key: value}
            if all({**given, **wanted} != {**given, **t.setting} for t in trials):
                trials.append(measure(wanted))
    return trials


def snippet(trial: Trial) -> str:
    """The setting as a part of a job file; empty where the job's own was best."""
    return yaml.safe_dump({"engine": trial.setting}, sort_keys=False) if trial.setting else ""


def sample_job(config: RunConfig, setting: Setting, rows: int, output: str) -> RunConfig:
    """The job with a setting, cut finely enough to be sampled, with an output and answers of its own."""
    data = config.model_dump(mode="json", exclude_unset=True)
    for key, value in setting.items():
        set_key(data, f"engine.{key}", value)
    set_key(data, "output.uri", output)
    set_key(data, "input.incremental", False)  # the sample is of all files, taken or not
    set_key(data, "limits.max_quarantined_fraction", 1.0)
    set_key(data, "limits.max_quarantined_rows", None)
    set_key(data, "cache.uri", None)  # answers of earlier settings are no measure of this one
    share = max(MIN_SHARD_ROWS, rows // (SHARDS_AN_ENGINE * config.pool.ceiling))
    set_key(data, "shard.max_rows", min(config.shard.max_rows, share))
    data.pop("evaluate", None)
    return parse_config(data, where="herd bench")


def sampled(prepared: PreparedRun, rows: int) -> PreparedRun:
    """The run with as many of its shards, spread over its plan, as hold about so many rows."""
    table = prepared.table
    mean = sum(table["num_rows"].to_pylist()[:1000]) / min(1000, table.num_rows)
    count = min(table.num_rows, max(1, round(rows / mean)))
    chosen = np.linspace(0, table.num_rows - 1, count).astype(np.int64)
    return replace(prepared, table=table.take(chosen))


def trial_of(setting: Setting, config: RunConfig, figures: Progress) -> Trial:
    """A finished run's figures, over the windows of its engines."""
    engines = list(figures.engines.values())
    window_s = sum(float(e.get("window_s", 0.0)) for e in engines)
    busy_s = sum(float(e.get("busy_s", 0.0)) for e in engines)
    return Trial(
        setting,
        gpus=len(engines) * config.engine.num_gpus if config.pool.accelerator else 0,
        rows_per_s=round(figures.rows_per_s, 1),
        output_tokens_per_s=round(figures.output_tokens / figures.window_s, 1) if figures.window_s else 0.0,
        start_s=max((float(e.get("start_s", 0.0)) for e in engines), default=0.0),
        busy_fraction=round(busy_s / window_s, 3) if window_s else 0.0,
        rows_quarantined=figures.rows_quarantined,
    )


def gpus_on_a_node(nodes: Sequence[Mapping[str, float]], accelerator: str | None) -> int:
    """The most GPUs that a node with the accelerator has; `nodes` holds the resources of each."""
    if accelerator is None:
        return 0
    return int(max((n.get("GPU", 0) for n in nodes if f"accelerator_type:{accelerator}" in n), default=0))


def bench(
    config: RunConfig,
    rows: int,
    points: Mapping[str, Sequence[Any]],
    *,
    address: str | None = None,
    verbose: bool = False,
    observe: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Runs the sweep on the job's cluster. Outputs stand beside the job's own, and are removed.

    Raises:
        ConfigError: the job cannot run, whatever the setting.
        HerdError: no setting could run, or the sweep was interrupted.
    """
    config = with_profile(config)
    place = f"{config.output.uri.rstrip('/')}.bench-{uuid.uuid4().hex[:8]}"
    store = Store(place, config.output.storage)

    def measure(setting: Setting) -> Trial:
        output = f"{place}/{uuid.uuid4().hex[:8]}"
        try:
            job = sample_job(config, setting, rows, output)
            finished = run_job(
                job,
                # the nodes are the same for every setting
                Launch(quiet=True, verbose=verbose, preflight=not setting),
                narrowed=lambda run: sampled(run, rows),
            )
            assert finished.figures is not None, "a new output has shards to do"
            trial = trial_of(setting, job, finished.figures)
        except HerdError as e:
            # the job as it stands is held against its input here; a setting beyond it may be refused
            if e.exit_code == 130 or (isinstance(e, ConfigError) and not setting):
                raise
            trial = Trial(setting, failure=e.what)
        finally:
            store.remove_folder(output)
        observe(trial)
        return trial

    try:
        with connected(address, verbose=verbose):
            if config.engine.auto:  # what is varied is the choice for the cluster, not each choice around a point
                config, _ = settled(config, gpus_of(live_nodes(), addable_nodes(), config.pool.accelerator))
                config = config.model_copy(update={"engine": config.engine.model_copy(update={"auto": False})})
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            axes = with_points(default_axes(config, gpus_on_a_node(nodes, config.pool.accelerator)), points)
            trials = sweep(axes, config.engine.vllm_args, measure)
    finally:
        store.remove_folder(place)
    if best(trials) is None:
        raise HerdError(f"No setting could run: {trials[0].failure}", todo="See `herd doctor` for the job.")
    return trials
