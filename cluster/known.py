"""The architectures of the profiles, for machines that have none of a model's files: Meta's `config.json`, cut down to what
decides memory. Pure.
"""

from functools import lru_cache
from typing import Any

from cluster.architecture import Architecture
from cluster.families import from_config

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


_CONFIGS = {
    "scout": _SCOUT,
    # with attention in 16 bits these are 60.4 GiB, in the range of 57 to 61 that is told of it
    "scout-int4": {**_SCOUT, **_in_fewer_bits(4, 128)},
    "maverick": {**_MAVERICK, **_in_fewer_bits(8, None, "re:.*shared_expert.*", r"re:.*feed_forward\.gate_proj")},
    "maverick-bf16": _MAVERICK,
}


@lru_cache
def known_architecture(profile: str) -> Architecture | None:
    """The architecture of a profile; None for one whose config is not known."""
    config = _CONFIGS.get(profile)
    return from_config(config) if config is not None else None
