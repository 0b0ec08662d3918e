"""The models that Herd knows by name: Meta's Llama 4 herd at the precisions that are published.

Architectures are Meta's `config.json`, cut down to what decides memory (`cluster.fit`), since a machine that plans has none
of a model's files. Each profile names its sources. Settings of `engine` have not yet run on a GPU, but for those of
`scout-int4` (docs/gpu.md). Pure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.architecture import Architecture
from cluster.families import from_config

LLAMA_4_LICENCE = "Llama 4 Community License"
HUB = "https://huggingface.co/"
ANNOUNCEMENT = "https://ai.meta.com/blog/llama-4-multimodal-intelligence/"
VLLM_BLOG = "https://blog.vllm.ai/2025/04/05/llama4.html"
VLLM_LOG = "https://github.com/vllm-project/vllm/issues/16152"
"""48.87 GiB of weights on each of eight H100s, for Maverick in FP8."""
RECIPES = "https://github.com/vllm-project/llm-compressor"
"""What its recipes for Llama 4 leave in 16 bits: attention, routers, the head, all of vision."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A known model. `engine` holds vLLM settings that a job's own override; `refused` says why it cannot be run."""

    name: str
    hub_id: str | None
    summary: str
    architecture: Architecture | None = None
    """None for one whose config is not known."""
    engine: dict[str, Any] = field(default_factory=dict)
    licence: str | None = LLAMA_4_LICENCE
    sources: tuple[str, ...] = ()
    """Where its figures are from: the model card with its config, and what they were held against."""
    refused: str | None = None


_TEXT = {
    "model_type": "llama4_text",
    "attention_chunk_size": 8192,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "vocab_size": 202048,
}
_VISION = {
    "hidden_size": 1408,
    "image_size": 336,
    "intermediate_size": 5632,
    "num_attention_heads": 16,
    "num_hidden_layers": 34,
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}
_BASE = {"model_type": "llama4", "dtype": "bfloat16", "vision_config": _VISION}
_SCOUT_TEXT = {"max_position_embeddings": 10_485_760, "num_local_experts": 16, "interleave_moe_layer_step": 1}
_MAVERICK_TEXT = {"max_position_embeddings": 1_048_576, "num_local_experts": 128, "interleave_moe_layer_step": 2}
_SCOUT = {**_BASE, "text_config": {**_TEXT, **_SCOUT_TEXT}}
_MAVERICK = {**_BASE, "text_config": {**_TEXT, **_MAVERICK_TEXT}}


def _in_fewer_bits(bits: int, group_size: int | None, *ignored: str) -> dict[str, Any]:
    weights = {"num_bits": bits, "group_size": group_size}
    groups = {"config_groups": {"group_0": {"weights": weights}}}
    ignore = ["re:.*lm_head", "re:.*router", "re:.*vision_model.*", "re:.*self_attn.*", *ignored]
    return {"quantization_config": {"quant_method": "compressed-tensors", "ignore": ignore, **groups}}


def _profile(name: str, hub_id: str, summary: str, config: dict[str, Any], *sources: str, **engine: Any) -> Profile:
    return Profile(name, hub_id, summary, from_config(config), engine, sources=(HUB + hub_id, *sources))


PROFILES = {
    p.name: p
    for p in (
        _profile(
            "scout",
            "meta-llama/Llama-4-Scout-17B-16E-Instruct",
            "Llama 4 Scout, BF16",
            _SCOUT,
            VLLM_BLOG,
            tensor_parallel_size=4,
            kv_cache_dtype="fp8",
            max_model_len=131_072,
        ),
        _profile(
            "scout-fp8",
            "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic",
            "Llama 4 Scout, FP8 weights",
            {**_SCOUT, **_in_fewer_bits(8, None)},
            RECIPES,
            tensor_parallel_size=2,
            kv_cache_dtype="fp8",
            max_model_len=131_072,
        ),
        _profile(
            "scout-int4",
            "RedHatAI/Llama-4-Scout-17B-16E-Instruct-quantized.w4a16",
            "Llama 4 Scout, INT4 weights",
            # with attention in 16 bits these are 60.4 GiB, in the range of 57 to 61 that is told of it
            {**_SCOUT, **_in_fewer_bits(4, 128)},
            RECIPES,
            ANNOUNCEMENT,
            tensor_parallel_size=1,
            kv_cache_dtype="fp8",
            max_model_len=32_768,
            max_num_seqs=128,  # the cache holds no more rows, and the sampler's reserve grows with it
        ),
        _profile(
            "maverick",
            "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8",
            "Llama 4 Maverick, FP8 experts",
            {**_MAVERICK, **_in_fewer_bits(8, None, "re:.*shared_expert.*", r"re:.*feed_forward\.gate_proj")},
            VLLM_LOG,
            VLLM_BLOG,
            tensor_parallel_size=8,
            kv_cache_dtype="fp8",
            max_model_len=131_072,
        ),
        _profile(
            "maverick-bf16",
            "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
            "Llama 4 Maverick, BF16",
            _MAVERICK,
            tensor_parallel_size=8,
            pipeline_parallel_size=2,
            max_model_len=65_536,
        ),
        _profile(
            "maverick-int4",
            "RedHatAI/Llama-4-Maverick-17B-128E-Instruct-quantized.w4a16",
            "Llama 4 Maverick, INT4 weights",
            {**_MAVERICK, **_in_fewer_bits(4, 128)},
            RECIPES,
            tensor_parallel_size=4,
            kv_cache_dtype="fp8",
            max_model_len=65_536,
        ),
        Profile(
            "behemoth",
            None,
            "Llama 4 Behemoth, about 2T parameters (288B active, 16 experts)",
            sources=(ANNOUNCEMENT,),
            refused="Meta announced Llama 4 Behemoth and never released its weights. Use `maverick`, or another model.",
        ),
    )
}


def find_profile(name: str) -> Profile | None:
    """The profile of this name, or of this hub id; None where Herd knows none."""
    wanted = name.lower()
    is_path = name.startswith((".", "/", "~")) or "://" in name or Path(name).is_dir()
    is_meta = "llama" in wanted or "/" not in wanted  # others have given models of theirs the same name
    if "behemoth" in wanted and is_meta and not is_path:
        return PROFILES["behemoth"]
    for profile in PROFILES.values():
        if wanted in (profile.name, (profile.hub_id or "").lower()):
            return profile
    return None
