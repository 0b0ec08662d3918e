"""`engine: auto` for a job: what its rows and its GPUs are, and what `cluster.choose` makes of them. And whether the engine of
any job fits, before it is started.

The choice is made once, when a run is opened, and stands in its `run.json` from then on: a later session of the same run
takes it from there, whatever its GPUs are.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from cluster.architecture import Architecture
from cluster.choose import Choice, Lengths, choose, choose_on_cpu
from cluster.fit import Fit, Layout, fit
from cluster.gpus import GIB, GPUS_A_NODE, Gpu, Gpus, find_gpu
from cluster.models import architecture_of
from cluster.placement import Node
from cluster.profiles import find_profile
from cluster.tokens import model_folder, token_counter
from pipeline.config import EngineConfig, RunConfig
from pipeline.config_errors import parse_config
from pipeline.engine.vllm import engine_args, environment
from pipeline.errors import ConfigError
from pipeline.footers import make_plan
from pipeline.output import Output
from pipeline.sample import choose as choose_rows
from pipeline.storage import Store
from pipeline.survey import survey

SAMPLE_ROWS = 256
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
BY_HAND = "Give engine.tensor_parallel_size and engine.max_model_len instead of `auto`."
CLOSE = 0.05
"""How near to the limit our own arithmetic is not trusted to refuse."""
MOST_NODES = 4
"""Nodes of one engine that are thought of where there is no cluster to look at."""
FIT_SETTINGS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_dtype",
    "gpu_memory_utilization",
    "mm_encoder_tp_mode",
    "enforce_eager",
)
UNCOUNTED = frozenset(
    {
        "cpu_offload_gb",
        "cpu_offload_params",
        "decode_context_parallel_size",
        "hf_overrides",
        "kv_cache_memory_bytes",
        "num_gpu_blocks_override",
        "prefill_context_parallel_size",
        "quantization",
        "speculative_config",
    }
)
"""Settings that change what an engine takes in ways that `cluster.fit` does not know."""
COUNTED_CACHES = ("auto", "bfloat16", "float16", "fp8", "int8")
"""How the types of KV cache begin whose bytes it knows."""
COUNTED_FORMATS = ("auto", "dummy", "hf", "safetensors")
"""The ways to load weights that leave them as the model's config has them."""


def settled(config: RunConfig, gpus: Gpus | None) -> tuple[RunConfig, tuple[str, ...]]:
    """The job with its engine's settings chosen for these GPUs (None: the CPU), and why; or as the run in its output has
    them, without reasons.

    Raises:
        ConfigError: the model's architecture is not known, it does not fit, or the input cannot serve the job.
        StorageError: the input is out of reach.
    """
    if (stored := _stored(config)) is not None:
        return stored, ()
    if gpus is None:
        with model_folder(config) as folder:
            architecture, _ = architecture_of(config, folder)
        room = float(os.environ.get(CPU_CACHE) or environment(config)[CPU_CACHE]) * GIB
        args, reasons = choose_on_cpu(architecture, config.engine.vllm_args, int(room))
        return _with(config, args), reasons
    made = _choice(config, gpus, _lengths)
    return _on(config, gpus, made), made.reasons


def shaped(config: RunConfig) -> RunConfig:
    """The job as `settled` would have it on as many usual nodes as it needs, without a look at its rows: for those who must
    know how large an engine is before there is a cluster. A job that chooses nothing is left as it is.

    Raises:
        ConfigError: the model's architecture is not known, or it fits no such nodes.
    """
    if not config.engine.auto or config.pool.accelerator is None:
        return config
    gpu = _known(config.pool.accelerator)
    for nodes in range(1, MOST_NODES + 1):
        gpus = Gpus(gpu, nodes, GPUS_A_NODE)
        try:
            made = _choice(config, gpus, lambda *_: None)
        except ConfigError:
            if nodes == MOST_NODES:
                raise
        else:
            return _with(config, made.engine)
    raise AssertionError("the last number of nodes returns or raises")


def _with(config: RunConfig, args: Mapping[str, Any]) -> RunConfig:
    engine = {**config.engine.model_dump(exclude_unset=True), **args}
    return config.model_copy(update={"engine": EngineConfig.model_validate(engine)})


def _on(config: RunConfig, gpus: Gpus, made: Choice) -> RunConfig:
    ceiling = config.pool.max if config.pool.max is not None else max(config.pool.min, made.replicas)
    pool = config.pool.model_copy(update={"accelerator": gpus.gpu.accelerator_type, "max": ceiling})
    return _with(config, made.engine).model_copy(update={"pool": pool})


def gpus_of(nodes: Sequence[Node], addable: Sequence[Node], accelerator: str | None) -> Gpus | None:
    """The GPUs that a job may use, of the kind it names, or of the only kind there is: those of the nodes with most of them,
    or where there are none yet, of what an autoscaler may add. None: it names no kind and there are none.

    Raises:
        ConfigError: there are several kinds and it names none; or it names one that is not there, or without figures.
    """
    kinds = sorted({kind for node in nodes if node.gpus for kind in node.kinds})
    if accelerator is None and len(kinds) > 1:
        raise ConfigError(f"The cluster has several kinds of GPUs: {', '.join(kinds)}", where="pool.accelerator")
    accelerator = accelerator or next(iter(kinds), None)
    if accelerator is None:
        return None
    hosts = [node for node in nodes if node.has(accelerator) and node.gpus >= 1]
    hosts = hosts or [node for node in addable if node.has(accelerator) and node.gpus >= 1]
    if not hosts:
        raise ConfigError(
            f"The cluster has no {accelerator}, and none that it may add", where="engine: auto", todo=BY_HAND
        )
    per_node = int(max(node.gpus for node in hosts))
    count = sum(min(node.count, MOST_NODES) for node in hosts if node.gpus >= per_node)
    return Gpus(_known(accelerator), count, per_node)


def usual_gpus(accelerator: str | None) -> Gpus | None:
    """A node of a kind of GPU, for a job that is planned without a cluster."""
    return None if accelerator is None else Gpus(_known(accelerator), 1, GPUS_A_NODE)


def _known(accelerator: str) -> Gpu:
    gpu = find_gpu(accelerator)
    if gpu is None:
        raise ConfigError(f"Herd has no figures for a GPU named {accelerator}", where="engine: auto", todo=BY_HAND)
    return gpu


def _stored(config: RunConfig) -> RunConfig | None:
    """The job as an earlier session of it in the same output chose."""
    output = Output(config.output.uri, Store(config.output.uri, config.output.storage))
    if not output.has("run.json"):
        return None
    earlier = parse_config(output.read_run()["config"], where=output.at("run.json"))
    if not earlier.engine.auto:
        return None
    engine = {**earlier.engine.model_dump(exclude_unset=True), **config.engine.model_dump(exclude_unset=True)}
    pool = config.pool if config.pool.accelerator else earlier.pool
    return config.model_copy(update={"engine": EngineConfig.model_validate(engine), "pool": pool})


Look = Callable[[RunConfig, Path | None, Architecture], Lengths | None]


def _choice(config: RunConfig, gpus: Gpus, look: Look) -> Choice:
    has_images = bool(config.input.images) or config.prompt.messages is not None
    profile = find_profile(str(config.model))
    with model_folder(config) as folder:
        architecture, why_not = architecture_of(config, folder)
        if architecture is None:
            raise ConfigError(f"Nothing can be chosen: {why_not}", where="engine: auto", todo=BY_HAND)
        lengths = look(config, folder, architecture)
    usual = profile.engine if profile else {}
    own = config.engine.vllm_args
    return choose(architecture, gpus, own=own, usual=usual, lengths=lengths, has_images=has_images)


def _lengths(config: RunConfig, folder: Path | None, architecture: Architecture) -> Lengths | None:
    """How long the job's rows are, by a sample that is the same each time; None where that cannot be counted. Answers are
    taken to be as long as they may get."""
    columns, _, table = make_plan(config)
    found = survey(
        config,
        columns,
        choose_rows(table, SAMPLE_ROWS, seed=0),
        token_counter(config, folder, architecture.tiling),
        total_rows=int(pc.sum(table["num_rows"]).as_py() or 0),
        max_model_len=None,
        max_images=None,
    )
    known = [(r.tokens, r.max_tokens) for r in found.answerable if r.tokens is not None]
    rows = [t.prompt_tokens + most for t, most in known if most is not None and t.image_tokens is not None]
    if not rows or len(rows) < len(known):
        return None
    return Lengths(sum(rows) / len(rows), max(rows))


def fit_of(config: RunConfig, gpu: Gpu) -> Fit | None:
    """Whether the job's engines fit a GPU by their settings; None where the model's architecture is not known, or what a
    setting does to memory."""
    args: dict[str, Any] = engine_args(config, "")
    is_counted = (
        UNCOUNTED.isdisjoint(args)
        and str(args.get("kv_cache_dtype", "auto")).startswith(COUNTED_CACHES)
        and str(args.get("load_format", "auto")) in COUNTED_FORMATS
    )
    with model_folder(config) as folder:
        architecture, _ = architecture_of(config, folder)
    if architecture is None or not is_counted:
        return None
    layout = Layout(
        int(args.get("tensor_parallel_size", 1)),
        int(args.get("pipeline_parallel_size", 1)),
        int(args.get("data_parallel_size", 1)),
        bool(args.get("enable_expert_parallel", False)),
    )
    return fit(
        architecture,
        layout,
        gpu,
        max_model_len=int(args.get("max_model_len") or architecture.max_context),
        has_images=args["limit_mm_per_prompt"].get("image", 0) > 0,
        is_cache_hybrid=not args.get("disable_hybrid_kv_cache_manager", False),
        **{name: args[name] for name in FIT_SETTINGS if name in args},
    )


def check_fit(config: RunConfig) -> str | None:
    """A warning where an engine of the job hardly fits its GPUs, by our own arithmetic; None where it does, or where nobody
    here can tell.

    Raises:
        ConfigError: it cannot fit.
    """
    gpu = find_gpu(config.pool.accelerator) if config.pool.accelerator and config.engine.kind == "vllm" else None
    found = fit_of(config, gpu) if gpu else None
    if found is None or (found.fits and found.margin >= CLOSE):
        return None
    if found.fits:
        return f"By our arithmetic this engine fits with {found.margin:.1%} of its memory to spare, and may not."
    said = "; ".join(found.reasons)
    if not found.faults and found.margin > -CLOSE:
        return f"By our arithmetic this engine does not quite fit: {said}"
    raise ConfigError(
        f"An engine does not fit: {said}",
        where="engine",
        todo="`herd models NAME` shows what fits; `engine: auto` chooses it.",
    )
