"""`engine: auto` for a job: what its rows and its GPUs are, and what `cluster.choose` makes of them.

The choice is made once, when a run is opened, and stands in its `run.json` from then on: a later session of the same run
takes it from there, whatever its GPUs are.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc

from cluster.choose import Choice, Lengths, choose
from cluster.fit import Fit, Layout, fit
from cluster.gpus import GPUS_A_NODE, Gpu, Gpus, find_gpu
from cluster.models import architecture_of
from cluster.placement import Node
from cluster.profiles import find_profile
from cluster.tokens import model_folder, token_counter
from pipeline.config import EngineConfig, RunConfig
from pipeline.config_errors import parse_config
from pipeline.engine.vllm import engine_args
from pipeline.errors import ConfigError
from pipeline.footers import make_plan
from pipeline.output import Output
from pipeline.sample import choose as choose_rows
from pipeline.storage import Store
from pipeline.survey import survey

SAMPLE_ROWS = 256
ON_THE_CPU = "There are no GPUs: engines run on the CPU, with Herd's own defaults for it."
CLOSE = 0.05
"""How near to the limit our own arithmetic is not trusted to refuse."""
FIT_SETTINGS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_dtype",
    "gpu_memory_utilization",
    "mm_encoder_tp_mode",
    "enforce_eager",
)


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
        return config, (ON_THE_CPU,)
    made = _choice(config, gpus)
    engine = {**config.engine.model_dump(exclude_unset=True), **made.engine}
    ceiling = config.pool.max if config.pool.max is not None else max(config.pool.min, made.replicas)
    pool = {"accelerator": gpus.gpu.accelerator_type, "max": ceiling}
    chosen = config.model_copy(
        update={"engine": EngineConfig.model_validate(engine), "pool": config.pool.model_copy(update=pool)}
    )
    return chosen, made.reasons


def gpus_of(nodes: Sequence[Node], accelerator: str | None) -> Gpus | None:
    """The GPUs of these nodes that a job may use: of the kind it names, or of the only kind there is. None: it names none
    and there are none.

    Raises:
        ConfigError: there are several kinds and it names none; or it names one that is not there, or without figures.
    """
    kinds = sorted({kind for node in nodes if node.gpus for kind in node.accelerators})
    if accelerator is None and len(kinds) > 1:
        raise ConfigError(f"The cluster has several kinds of GPUs: {', '.join(kinds)}", where="pool.accelerator")
    accelerator = accelerator or next(iter(kinds), None)
    if accelerator is None:
        return None
    hosts = [node for node in nodes if node.has(accelerator) and node.gpus >= 1]
    if not hosts:
        raise ConfigError(f"The cluster has no {accelerator} now", where="engine: auto", todo="Give engine's settings.")
    return Gpus(_known(accelerator), len(hosts), int(max(node.gpus for node in hosts)))


def usual_gpus(accelerator: str | None) -> Gpus | None:
    """A node of a kind of GPU, for a job that is planned without a cluster."""
    return None if accelerator is None else Gpus(_known(accelerator), 1, GPUS_A_NODE)


def _known(accelerator: str) -> Gpu:
    gpu = find_gpu(accelerator)
    if gpu is None:
        raise ConfigError(
            f"Herd has no figures for a GPU named {accelerator}", where="engine: auto", todo="Give engine's settings."
        )
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


def _choice(config: RunConfig, gpus: Gpus) -> Choice:
    own = config.engine.vllm_args
    has_images = bool(config.input.images) or config.prompt.messages is not None
    profile = find_profile(str(config.model))
    columns, _, table = make_plan(config)
    with model_folder(config) as folder:
        architecture, why_not = architecture_of(config, folder)
        if architecture is None:
            raise ConfigError(f"Nothing can be chosen: {why_not}", where="engine: auto", todo="Give engine's settings.")
        found = survey(
            config,
            columns,
            choose_rows(table, SAMPLE_ROWS, seed=0),
            token_counter(config, folder, architecture.tiling),
            total_rows=int(pc.sum(table["num_rows"]).as_py()),
            max_model_len=None,
            max_images=None,
        )
    answer = int(config.effective_sampling.get("max_tokens") or 0)
    tokens = [row.tokens for row in found.answerable if row.tokens is not None]
    lengths = None
    if tokens and answer and all(t.image_tokens is not None for t in tokens):
        prompts = [t.prompt_tokens for t in tokens]
        lengths = Lengths(sum(prompts) / len(prompts) + answer, max(prompts) + answer)
    usual = profile.engine if profile else {}
    return choose(architecture, gpus, own=own, usual=usual, lengths=lengths, has_images=has_images)


def fit_of(config: RunConfig, gpu: Gpu) -> Fit | None:
    """Whether the job's engines fit a GPU by their settings; None where the model's architecture is not known."""
    args: dict[str, Any] = engine_args(config, "")
    with model_folder(config) as folder:
        architecture, _ = architecture_of(config, folder)
    if architecture is None:
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
    if found is None or found.fits:
        return None
    said = "; ".join(found.reasons)
    if abs(found.margin) < CLOSE:
        return f"By our arithmetic this engine does not quite fit: {said}"
    raise ConfigError(
        f"An engine does not fit: {said}",
        where="engine",
        todo="`herd models NAME` shows what fits; `engine: auto` chooses it.",
    )
