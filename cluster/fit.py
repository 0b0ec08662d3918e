"""Does a model fit on GPUs, and how much context and how many rows at a time: answered before a GPU is taken. Pure.

Formulas follow vLLM 0.32: how its layers are split (`models/llama4.py`, `mllama4.py`, `config/parallel.py`), what its hybrid
KV cache keeps a request (`v1/kv_cache_interface.py`), what its start-up profile adds. Tests hold the figures against published
logs, and against one of Scout in INT4 on an H200 (docs/gpu.md).
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

from cluster.architecture import Architecture
from cluster.gpus import GIB, Gpu

GPU_MEMORY_UTILIZATION = 0.92
"""vLLM's default (`config/cache.py`)."""
RUNTIME_BYTES = int(1.8 * GIB)
"""CUDA context and libraries beside the tensors, on an engine of one GPU: 1.79 GiB in a log of vLLM pull request #10511."""
COMMUNICATION_BYTES = int(1.8 * GIB)
"""NCCL and custom all-reduce on top, for an engine of several: 3.58 GiB in all in the same log with two."""
GRAPH_BYTES = int(1.0 * GIB)
"""CUDA graphs of 51 sizes up to 512: 0.73 GiB in a log of vLLM pull request #39559, rounded up."""
SAMPLER_BYTES = 40
"""Bytes a sequence and vocabulary entry while the sampler is profiled: logits in BF16 and float32, their sort (values and
64-bit places), probabilities, sums. 256 sequences of Llama 3 8B make 1.22 GiB of it; the log of #10511 shows 1.26."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How engines are laid over GPUs, in vLLM's terms. One engine takes `tp * pp * dp` of them."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    enable_expert_parallel: bool = False

    @property
    def num_gpus(self) -> int:
        return self.tp * self.pp * self.dp

    def __str__(self) -> str:
        sizes = f"TP{self.tp}" + (f"xPP{self.pp}" if self.pp > 1 else "")
        sizes = f"DP{self.dp}x{sizes}" if self.dp > 1 else sizes
        return f"{sizes}+EP{self.tp * self.dp}" if self.enable_expert_parallel else sizes


@dataclass(frozen=True, slots=True)
class KvCost:
    """What the KV cache takes on each GPU of an engine's fullest pipeline stage. Bytes."""

    global_bytes_per_token: int
    """Of the layers that look back over everything."""
    local_bytes_per_token: int
    """Of the local layers."""
    local_tokens: int | None
    """Tokens a request that local layers keep at most: their window and what is in flight. None: they keep all."""

    @property
    def bytes_per_token(self) -> int:
        """Of a token that all layers keep."""
        return self.global_bytes_per_token + self.local_bytes_per_token

    def request_bytes(self, tokens: float) -> float:
        """Of a request of so many tokens, prompt and output together."""
        local = tokens if self.local_tokens is None else min(tokens, self.local_tokens)
        return self.global_bytes_per_token * tokens + self.local_bytes_per_token * local

    def longest(self, room_bytes: float) -> int:
        """Tokens of the longest request that so many bytes hold."""
        if room_bytes <= 0:
            return 0
        if self.local_tokens is None or self.request_bytes(self.local_tokens) >= room_bytes:
            return int(room_bytes / self.bytes_per_token)
        if not self.global_bytes_per_token:
            return 2**63 - 1
        return int((room_bytes - self.local_bytes_per_token * self.local_tokens) / self.global_bytes_per_token)


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of the arithmetic. Bytes are those of each GPU."""

    layout: Layout
    gpu: Gpu
    fits: bool
    reasons: tuple[str, ...]
    """Why not, a sentence each; empty where it fits."""
    faults: tuple[str, ...]
    """Those of the reasons that no memory would mend."""
    budget_bytes: int
    """What vLLM may use: utilisation times memory."""
    weights_bytes_per_gpu: int
    reserve_bytes: int
    """For activations, CUDA graphs and libraries."""
    kv: KvCost
    max_model_len: int
    max_context: int

    @property
    def kv_bytes(self) -> int:
        """Left for the KV cache; below 0 where there is not even room for the weights."""
        return self.budget_bytes - self.weights_bytes_per_gpu - self.reserve_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Of a token that all layers keep."""
        return self.kv.bytes_per_token

    @property
    def largest_context(self) -> int:
        """Tokens of the longest request that the cache holds alone, at most the model's own limit."""
        return min(self.max_context, self.kv.longest(self.kv_bytes))

    @property
    def kv_token_capacity(self) -> int:
        """Tokens that the cache holds in requests of `max_model_len`, as vLLM's log tells ("GPU KV cache size")."""
        return int(self.concurrency(self.max_model_len) * self.max_model_len)

    def concurrency(self, tokens: float) -> float:
        """Requests of so many tokens (prompt and output) that the cache holds at a time."""
        return max(0, self.kv_bytes) / self.kv.request_bytes(max(1, tokens))

    @property
    def margin(self) -> float:
        """How far need and budget are apart, as a fraction of the budget; negative where it does not fit."""
        need = self.weights_bytes_per_gpu + self.reserve_bytes + self.kv.request_bytes(self.max_model_len)
        return 1 - need / self.budget_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "layout": str(self.layout),
            "gpus": self.layout.num_gpus,
            "gpu": self.gpu.name,
            "fits": self.fits,
            "reasons": list(self.reasons),
            "budget_bytes": self.budget_bytes,
            "weights_bytes_per_gpu": self.weights_bytes_per_gpu,
            "reserve_bytes": self.reserve_bytes,
            "kv_bytes": self.kv_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_token_capacity": self.kv_token_capacity,
            "max_model_len": self.max_model_len,
            "largest_context": self.largest_context,
            "concurrency": round(self.concurrency(self.max_model_len), 2),
        }


def fit(
    architecture: Architecture,
    layout: Layout,
    gpu: Gpu,
    *,
    max_model_len: int,
    max_num_seqs: int = 512,
    max_num_batched_tokens: int = 8192,
    kv_cache_dtype: str = "auto",
    gpu_memory_utilization: float = GPU_MEMORY_UTILIZATION,
    mm_encoder_tp_mode: str = "weights",
    has_images: bool = True,
    enforce_eager: bool = False,
    is_cache_hybrid: bool = True,
) -> Fit:
    """Whether an engine of this layout holds the model and at least one request of `max_model_len` tokens, which vLLM asks
    for when it starts. Keyword arguments bear vLLM's names; `has_images` says whether images may be asked with a prompt
    (else vLLM does not reserve for them), `is_cache_hybrid` whether local layers give back what they no longer see.
    """
    weights = weights_bytes_per_gpu(architecture, layout, mm_encoder_tp_mode=mm_encoder_tp_mode)
    reserve = reserve_bytes(
        architecture,
        layout,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        mm_encoder_tp_mode=mm_encoder_tp_mode,
        has_images=has_images,
        enforce_eager=enforce_eager,
    )
    kv = kv_cost(
        architecture,
        layout,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_cache_dtype=kv_cache_dtype,
        is_cache_hybrid=is_cache_hybrid,
    )
    budget = int(gpu_memory_utilization * gpu.memory_bytes)
    faults = layout_faults(architecture, layout, mm_encoder_tp_mode=mm_encoder_tp_mode)
    if max_model_len > architecture.max_context:
        faults += (f"max_model_len {max_model_len:,} is beyond the model's own {architecture.max_context:,}",)
    reasons = faults
    room = budget - weights - reserve
    may_use = f"the {budget / GIB:.1f} GiB that vLLM may use of {gpu.name} ({gpu.memory_bytes / GIB:.1f} GiB)"
    if weights >= budget:
        reasons += (f"the weights take {weights / GIB:.1f} GiB on each GPU ({layout}), more than {may_use}",)
    elif room < kv.request_bytes(max_model_len):
        reasons += (
            f"of {may_use}, weights take {weights / GIB:.1f} and activations and graphs about {reserve / GIB:.1f}; a request "
            f"of {max_model_len:,} tokens needs {kv.request_bytes(max_model_len) / GIB:.2f} for its KV cache",
        )
    context = architecture.max_context
    return Fit(layout, gpu, not reasons, reasons, faults, budget, weights, reserve, kv, max_model_len, context)


def layout_faults(
    architecture: Architecture, layout: Layout, *, mm_encoder_tp_mode: str = "weights"
) -> tuple[str, ...]:
    """Why vLLM would refuse a layout whatever the memory, a sentence each. Source: the assertions of its attention and
    linear layers; vLLM issue #16227 for 40 heads on 16 GPUs."""
    tp, kv_heads = layout.tp, architecture.num_kv_heads
    faults = []
    if architecture.num_heads % tp:
        faults.append(f"{architecture.num_heads} attention heads are not divisible by tensor_parallel_size {tp}")
    if not architecture.latent_kv_values and kv_heads % tp and tp % kv_heads:
        faults.append(f"{kv_heads} KV heads and tensor_parallel_size {tp} do not divide each other")
    splits_vision = architecture.vision is not None and mm_encoder_tp_mode != "data"
    if splits_vision and architecture.vision and architecture.vision.num_heads % tp:
        faults.append(f"{architecture.vision.num_heads} vision heads are not divisible by tensor_parallel_size {tp}")
    if layout.pp > architecture.num_layers:
        faults.append(f"{architecture.num_layers} layers do not fill pipeline_parallel_size {layout.pp}")
    if layout.enable_expert_parallel and not architecture.num_experts:
        faults.append("enable_expert_parallel needs a mixture of experts")
    return tuple(faults)


def weights_bytes_per_gpu(architecture: Architecture, layout: Layout, *, mm_encoder_tp_mode: str = "weights") -> int:
    """Bytes of weights on a GPU of the fullest pipeline stage.

    `(attention + dense + embedding)/TP + router + shared/TP + routed/(TP, or TP*DP with expert parallelism) +
    vision/(1 if mm_encoder_tp_mode is "data" else TP)`, the layers' terms divided by PP. Shared experts are whole on each
    GPU where EP, TP > 1 and DP > 1 meet, since MoE layers then go by sequence (`use_sequence_parallel_moe`). Checked: 48.87 GiB in the log of vLLM issue #16152 (Maverick FP8, TP8).
    """
    of, tp = architecture.part_bytes, layout.tp
    share = ceil(architecture.num_layers / layout.pp) / architecture.num_layers
    is_by_sequence = layout.enable_expert_parallel and tp > 1 and layout.dp > 1
    layers = (of("attention") + of("dense")) / tp + of("replicated")
    layers += of("shared") / (1 if is_by_sequence else tp)
    layers += of("routed") / (tp * layout.dp if layout.enable_expert_parallel else tp)
    ends = (of("embedding") + of("head")) if layout.pp == 1 else max(of("embedding"), of("head"))
    vision = of("vision") / (1 if mm_encoder_tp_mode == "data" else tp)
    return int(layers * share + ends / tp + vision)


def kv_cost(
    architecture: Architecture,
    layout: Layout,
    *,
    max_num_batched_tokens: int = 8192,
    kv_cache_dtype: str = "auto",
    is_cache_hybrid: bool = True,
) -> KvCost:
    """What a token costs: `2 * max(1, KV heads / TP) * head_dim * bytes` a layer and GPU, or DeepSeek's latent values.

    Local layers keep their chunk, or window, and what is in flight: `concurrent batches * max_num_batched_tokens`, two
    batches with asynchronous scheduling, one more than the stages of a pipeline (`VllmConfig.max_in_flight_tokens`).
    """
    value_bytes = 1 if kv_cache_dtype.startswith(("fp8", "int8")) else 2
    values = architecture.latent_kv_values or 2 * max(1, architecture.num_kv_heads // layout.tp) * architecture.head_dim
    per_layer = values * value_bytes
    num_global, num_local = (
        ceil(n / layout.pp) for n in (architecture.num_global_layers, architecture.num_local_layers)
    )
    in_flight = (layout.pp + 1) * max_num_batched_tokens
    local = architecture.local_tokens + in_flight if is_cache_hybrid and num_local else None
    return KvCost(num_global * per_layer, num_local * per_layer, local)


def reserve_bytes(
    architecture: Architecture,
    layout: Layout,
    *,
    max_num_seqs: int = 512,
    max_num_batched_tokens: int = 8192,
    mm_encoder_tp_mode: str = "weights",
    has_images: bool = True,
    enforce_eager: bool = False,
) -> int:
    """Bytes that vLLM's start-up profile sets aside beside weights and cache. An estimate, on the safe side.

    Runtime and communication; CUDA graphs; and the largest of three things that do not happen at the same time: a step
    of `max_num_batched_tokens` through one layer, the sampler over `max_num_seqs` rows of logits, the vision tower over as
    many patches as make that many tokens. The encoder's output stays.
    """
    tokens, tp = max_num_batched_tokens, layout.tp
    expert_tp = 1 if layout.enable_expert_parallel else tp
    experts = architecture.experts_per_token * (3 * architecture.expert_ffn_size / expert_tp + architecture.hidden_size)
    if architecture.parameters.shared:
        # at the same time, on a stream of their own (`fused_moe/runner`)
        of_routed = architecture.parameters.shared / architecture.parameters.routed * architecture.num_experts
        experts += 3 * of_routed * architecture.expert_ffn_size / tp + architecture.hidden_size
    widths = max(3 * architecture.ffn_size / tp, experts)
    heads = (architecture.num_heads + 2 * architecture.num_kv_heads) * architecture.head_dim / tp
    step = 2 * tokens * (6 * architecture.hidden_size + heads + widths)
    sampler = SAMPLER_BYTES * min(max_num_seqs, tokens) * architecture.vocab_size
    vision = kept = 0.0
    if architecture.vision is not None and architecture.tiling is not None and has_images:
        budget = max(tokens, architecture.tiling.most_tokens)
        kept = 2 * budget * architecture.hidden_size
        tower, split = architecture.vision, 1 if mm_encoder_tp_mode == "data" else tp
        patches = budget / architecture.tiling.tokens_per_tile * tower.patches_per_tile
        vision = 2 * patches * (8 * tower.hidden_size + 2 * tower.ffn_size / split)
    fixed = RUNTIME_BYTES + (COMMUNICATION_BYTES if layout.num_gpus > 1 else 0) + (0 if enforce_eager else GRAPH_BYTES)
    return int(fixed + max(step, sampler, vision) + kept)
