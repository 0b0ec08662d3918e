"""`engine: auto`: which vLLM settings suit a model, GPUs and rows of these lengths, and why. Pure.

What the job sets itself is kept, and the rest is chosen around it. Rules, with where they come from:

- The smallest engine that fits, on one node wherever one fits: every GPU of a tensor parallel group waits for the others
  twice a layer, and vLLM's recipe for Scout on Hopper names TP1 as the best throughput a GPU where it fits. Several engines
  rather than data parallelism: each of them dies alone.
- An engine fits well if its cache holds `WANTED_ROWS` rows of the job at a time; among the well-fitting the smallest is
  taken, else the one whose cache holds most.
- A cache of 8 bits where 16 would hold fewer than `WANTED_ROWS` rows and the GPU has FP8 units, as in vLLM's recipe.
- The context is no shorter than `USUAL_CONTEXT` where that fits: a limit costs no memory by itself, since the cache goes by
  what rows hold, and a row beyond it would go to the quarantine. No longer either, unless rows ask for it: Llama 4 turns its
  attention temperature tuning on where it is longer (vLLM's flag of that name), which changes answers.
- Expert parallelism stays off: with it off, AMD's playbook for Maverick on eight MI300X shows 7 to 12% more tokens/s; on
  H100 nobody has published it. `herd bench` measures it.

Not yet run on a GPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

from cluster.architecture import Architecture
from cluster.fit import Fit, Layout, fit, kv_cost
from cluster.gpus import Gpus
from pipeline.engine.vllm import CPU_DEFAULTS
from pipeline.errors import ConfigError

WANTED_ROWS = 32
"""Rows at a time, at the job's own lengths, that an engine's cache should hold: half the concurrency of vLLM's published
figures for eight GPUs, so that a step's weights are read for many rows. A judgement, not a measurement."""
ROWS = tuple(2**n for n in range(10, 2, -1))
"""Rows at a time that are tried, from vLLM's own for offline use of large GPUs down."""
BATCHED_TOKENS = 8192
"""vLLM's recipe for Llama 4 on Hopper."""
USUAL_CONTEXT = 32_768
"""Tokens of prompt and answer that are allowed where nothing asks for more."""
USUAL_TOKENS = 2048
"""Of a row, prompt and answer, where the rows tell nothing."""
HEADROOM = 2
"""Times the longest row of a sample, since the longest of all rows is longer."""
CONTEXT_STEP = 1024
CPU_CONTEXT_STEP = 128
"""Tokens that a context on the CPU is rounded down to."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a row of the job, prompt and answer together."""

    mean: float
    longest: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings for vLLM, the job's own among them; how many such engines the GPUs hold; and why, a sentence each."""

    engine: dict[str, Any]
    replicas: int
    reasons: tuple[str, ...]
    fit: Fit


class _Trial(NamedTuple):
    fit: Fit
    kv_cache_dtype: str
    rows: int


def choose(
    architecture: Architecture,
    gpus: Gpus,
    *,
    own: Mapping[str, Any],
    usual: Mapping[str, Any] | None = None,
    lengths: Lengths | None = None,
    has_images: bool = True,
) -> Choice:
    """The settings for a model on these GPUs. `own` are the job's, which are kept; `usual` the profile's, of which the
    context is taken where rows tell nothing.

    Raises:
        ConfigError: no layout fits, with what the nearest one lacks; or the job's own settings contradict the GPUs.
    """
    contexts, why_context = _contexts(architecture, own, usual or {}, lengths)
    mean = min(lengths.mean if lengths else USUAL_TOKENS, contexts[0])
    tried = [
        _tried(architecture, layout, gpus, own, contexts, mean, kv, has_images)
        for layout in _layouts(architecture, gpus, own)
        for kv in _cache_types(gpus, own)
    ]
    if not tried:
        raise ConfigError(f"{_shown(own)} asks for more than {gpus} has", where="engine", todo="Lower it, or add GPUs.")
    fitting = [t for t in tried if t.fit.fits]
    if not fitting:
        nearest = max((t.fit for t in tried), key=lambda f: f.margin)
        raise ConfigError(
            f"The model does not fit {gpus}: {'; '.join(nearest.reasons)}",
            where="engine: auto",
            todo="Take a model in fewer bits, more GPUs, or a smaller engine.max_model_len.",
        )
    fitting = [t for t in fitting if t.fit.layout.pp == 1] or fitting
    well = [t for t in fitting if t.fit.concurrency(mean) >= WANTED_ROWS]
    if well:
        best = min(well, key=lambda t: (t.fit.layout.num_gpus, t.kv_cache_dtype != "auto"))
    else:
        best = max(fitting, key=lambda t: t.fit.concurrency(mean) / t.fit.layout.num_gpus)
    found = best.fit
    layout, rows = found.layout, found.concurrency(mean)
    chosen: dict[str, Any] = {
        "tensor_parallel_size": layout.tp,
        **({"pipeline_parallel_size": layout.pp} if layout.pp > 1 else {}),
        "max_model_len": found.max_model_len,
        "max_num_seqs": best.rows,
        "max_num_batched_tokens": BATCHED_TOKENS,
        "kv_cache_dtype": best.kv_cache_dtype,
        **({"enable_expert_parallel": False} if architecture.num_experts and layout.tp > 1 else {}),
    }
    engine = {**chosen, **own}
    held = gpus.nodes * (gpus.per_node // layout.num_gpus) or gpus.total // layout.num_gpus
    return Choice(engine, held, _reasons(found, gpus, engine, own, rows, mean, why_context, held), found)


def _contexts(
    architecture: Architecture, own: Mapping[str, Any], usual: Mapping[str, Any], lengths: Lengths | None
) -> tuple[tuple[int, ...], str]:
    """The values of `max_model_len` to try, the one that is wanted first, and why that."""
    if (given := own.get("max_model_len")) is not None:
        return (int(given),), "as the job says"
    most = architecture.max_context
    if lengths is None:
        return (min(most, int(usual.get("max_model_len", USUAL_CONTEXT))),), "the rows were not looked at"
    least = -(-int(lengths.longest * HEADROOM) // CONTEXT_STEP) * CONTEXT_STEP
    why = f"the longest row of the sample has {lengths.longest:,} tokens with its answer, and others may be longer"
    return tuple(dict.fromkeys(min(most, context) for context in (max(least, USUAL_CONTEXT), least))), why


def _layouts(architecture: Architecture, gpus: Gpus, own: Mapping[str, Any]) -> Iterator[Layout]:
    """The layouts that there are GPUs for, the smallest first: powers of two on a node, then whole nodes in a pipeline."""
    is_expert_parallel = bool(own.get("enable_expert_parallel", False))
    for pp in range(1, gpus.nodes + 1):
        for tp in (1, 2, 4, 8):
            layout = Layout(tp, pp, enable_expert_parallel=is_expert_parallel)
            is_whole = pp == 1 or tp == gpus.per_node
            asked = [int(own.get("tensor_parallel_size", tp)), int(own.get("pipeline_parallel_size", pp))]
            if tp <= gpus.per_node and asked == [tp, pp] and (is_whole or "pipeline_parallel_size" in own):
                yield layout


def _cache_types(gpus: Gpus, own: Mapping[str, Any]) -> tuple[str, ...]:
    if (given := own.get("kv_cache_dtype")) is not None:
        return (str(given),)
    return ("auto", "fp8") if gpus.gpu.fp8_tflops else ("auto",)


def _tried(
    architecture: Architecture,
    layout: Layout,
    gpus: Gpus,
    own: Mapping[str, Any],
    contexts: tuple[int, ...],
    mean: float,
    kv: str,
    has_images: bool,
) -> _Trial:
    """The layout with as many rows at a time as its cache holds: what is reserved for them is not there for the cache."""
    names = ("gpu_memory_utilization", "mm_encoder_tp_mode", "enforce_eager", "max_num_batched_tokens")
    settings = {"max_num_batched_tokens": BATCHED_TOKENS, **{name: own[name] for name in names if name in own}}
    asked = own.get("max_num_seqs")
    for context, rows in product(contexts, (int(asked),) if asked is not None else ROWS):
        found = fit(
            architecture,
            layout,
            gpus.gpu,
            max_model_len=context,
            max_num_seqs=rows,
            kv_cache_dtype=kv,
            has_images=has_images,
            **settings,
        )
        if found.fits and found.concurrency(mean) >= rows:
            break
    return _Trial(found, kv, rows)


def choose_on_cpu(
    architecture: Architecture | None, own: Mapping[str, Any], kv_bytes: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings for engines on the CPU, the job's `own` among them, and why. `kv_bytes` is what vLLM is given for the KV
    cache there; a model of unknown architecture (None) keeps its own context."""
    defaults = {name: CPU_DEFAULTS[name] for name in ("max_num_seqs", "max_num_batched_tokens")}
    reasons = ["There are no GPUs: engines run on the CPU, with Herd's usual settings for it."]
    if architecture is not None and "max_model_len" not in own:
        layout = Layout(int(own.get("tensor_parallel_size", 1)))
        longest = kv_cost(architecture, layout, is_cache_hybrid=False).longest(kv_bytes)
        if longest < architecture.max_context:
            defaults["max_model_len"] = longest // CPU_CONTEXT_STEP * CPU_CONTEXT_STEP
            reasons.append(f"max_model_len is {defaults['max_model_len']:,}: the cache on the CPU holds no more.")
    if own:
        reasons.append(f"Kept as the job has it: {_shown(own)}.")
    return {**defaults, **own}, tuple(reasons)


def _reasons(
    found: Fit,
    gpus: Gpus,
    engine: Mapping[str, Any],
    own: Mapping[str, Any],
    rows: float,
    mean: float,
    why_context: str,
    held: int,
) -> tuple[str, ...]:
    layout = found.layout
    weights = found.weights_bytes_per_gpu / 2**30
    size = "one GPU" if layout.num_gpus == 1 else f"{layout.num_gpus} GPUs ({layout})"
    out = [
        f"An engine takes {size}, the smallest that does: {weights:.1f} GiB of weights a GPU, and a cache for about "
        f"{rows:,.0f} rows of {mean:,.0f} tokens at a time. {gpus} holds {held} of them.",
        f"max_model_len is {engine['max_model_len']:,}: {why_context}.",
        f"max_num_seqs is {engine['max_num_seqs']:,}, what the cache holds; max_num_batched_tokens is "
        f"{engine['max_num_batched_tokens']:,}, after vLLM's recipe.",
    ]
    if "kv_cache_dtype" not in own:
        out.append(
            "The KV cache is in FP8: 16 bits would hold too few rows."
            if engine["kv_cache_dtype"] == "fp8"
            else "The KV cache is in the model's own type: there is room for it."
        )
    if "enable_expert_parallel" in engine and "enable_expert_parallel" not in own:
        out.append(
            "Expert parallelism is off: off was 7 to 12% faster for Maverick on eight MI300X (AMD's playbook), and nobody has "
            "published it for these GPUs; `herd bench --enable-expert-parallel false,true` measures it."
        )
    if own:
        out.append(f"Kept as the job has it: {_shown(own)}.")
    return tuple(out)


def _shown(own: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in own.items())
