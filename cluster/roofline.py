"""How fast an engine could be by what its GPUs can compute and read, where nothing was measured or published. Pure.

Prefill is bound by FLOPs: two for each active parameter and token. A decoding step reads the weights that its batch touches
and the KV cache of its requests, and computes two FLOPs for each active parameter and row; it takes the longer of the two.
`EFFICIENCY` of the peaks is assumed for both. With it the published figures of vLLM at 64 requests at a time and of
TensorRT-LLM's Maverick at full load come out within a quarter; TensorRT-LLM's Scout comes out twice as fast as published.
"""

from dataclasses import dataclass

from cluster.architecture import Architecture
from cluster.fit import KvCost
from cluster.gpus import Gpu

EFFICIENCY = 0.35
"""Share of peak FLOPs in prefill and of peak bandwidth in decoding."""


@dataclass(frozen=True, slots=True)
class Roofline:
    """Seconds of one engine for tokens."""

    input_token_s: float
    image_token_s: float
    """What the vision tower adds to a token of an image."""
    output_token_s: float


def active_parameters(architecture: Architecture) -> float:
    """Parameters that a token goes through."""
    p = architecture.parameters
    routed = p.routed * architecture.experts_per_token / architecture.num_experts if architecture.num_experts else 0
    return p.attention + p.dense + p.shared + p.replicated + (p.head or p.embedding) + routed


def roofline(
    architecture: Architecture, gpu: Gpu, num_gpus: int, kv: KvCost, *, batch: float, request_tokens: float
) -> Roofline:
    """The seconds of an engine on `num_gpus` with `batch` requests of `request_tokens` (prompt and output) at a time."""
    flops = num_gpus * gpu.bf16_tflops * 1e12 * EFFICIENCY
    bandwidth = num_gpus * gpu.bandwidth_bytes_per_s * EFFICIENCY
    active = active_parameters(architecture)
    touched = 1.0
    if architecture.num_experts:
        # the experts that at least one row of the batch is sent to, if they are chosen alike
        touched = 1 - (1 - architecture.experts_per_token / architecture.num_experts) ** batch
    parts = ("attention", "dense", "shared", "replicated", "head" if architecture.parameters.head else "embedding")
    weights = sum(map(architecture.part_bytes, parts)) + architecture.part_bytes("routed") * touched
    cache = batch * kv.request_bytes(request_tokens) * num_gpus
    step = max((weights + cache) / bandwidth, 2 * active * batch / flops)
    image_token_s = 0.0
    if architecture.vision is not None and architecture.tiling is not None:
        patches = architecture.vision.patches_per_tile / architecture.tiling.tokens_per_tile
        image_token_s = 2 * architecture.parameters.vision * patches / flops
    return Roofline(2 * active / flops, image_token_s, step / batch)
