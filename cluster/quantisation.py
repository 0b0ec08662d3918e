"""Which parts of a model a checkpoint holds in fewer bits, read from its `quantization_config`. Pure.

Methods whose size follows from the config are known; another is refused rather than guessed at.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.architecture import Quantisation
from pipeline.errors import ConfigError

LINEAR_PARTS = ("attention", "dense", "shared", "routed", "vision")
"""Parts that are made of linear layers. Embeddings, heads and routers stay as they are, as far as these methods go."""

# Names that checkpoints give the modules of a part, to be held against lists of what is left out.
_NAMES = {
    "attention": ("self_attn.q_proj", "self_attn.o_proj"),
    "dense": ("mlp.gate_proj", "feed_forward.gate_proj"),
    "shared": ("feed_forward.shared_expert.gate_proj", "mlp.shared_experts.gate_proj", "mlp.shared_expert.gate_proj"),
    "routed": (
        "feed_forward.experts.0.gate_proj",
        "feed_forward.experts.gate_up_proj",
        "mlp.experts.0.gate_proj",
        "block_sparse_moe.experts.0.w1",
    ),
}


class UnknownModelError(ConfigError):
    """A model whose memory Herd cannot compute."""


def read_quantisation(config: Mapping[str, Any], num_layers: int, has_vision: bool) -> Quantisation | None:
    """The quantisation in a model's config, None for weights as they are.

    Raises:
        UnknownModelError: a method, or a number of bits, that Herd does not know the size of.
    """
    given = config.get("quantization_config")
    if not given:
        return None
    method = str(given.get("quant_method", ""))
    bits, group, zero_bits = _bits(method, given)
    left_out = [str(n) for key in ("ignore", "modules_to_not_convert", "exclude_modules") for n in given.get(key) or ()]
    parts = {part for part in LINEAR_PARTS if not _is_left_out(part, left_out, num_layers)}
    if method in ("gptq", "awq", "auto-round", "fbgemm_fp8", "fp8") or not has_vision:
        parts.discard("vision")  # these quantise the decoder alone
    return Quantisation(f"{method} {bits} bits", bits + (16 + zero_bits) / group if group else bits, frozenset(parts))


def _bits(method: str, given: Mapping[str, Any]) -> tuple[int, int, int]:
    """Bits of a weight, weights that share a scale of 16 bits (0: so many that it does not count), bits of a zero point."""
    if method in ("fp8", "fbgemm_fp8"):
        return 8, 0, 0
    if method in ("gptq", "awq", "auto-round"):
        bits, group = int(given.get("bits") or given.get("w_bit") or 0), int(given.get("group_size", 128))
        if bits in (2, 3, 4, 8):
            return bits, max(0, group), bits
    if method == "compressed-tensors":
        groups = given.get("config_groups") or {}
        weights = [g["weights"] for g in groups.values() if isinstance(g, Mapping) and g.get("weights")]
        if weights and len({(w.get("num_bits"), w.get("group_size")) for w in weights}) == 1:
            bits, group = int(weights[0]["num_bits"]), int(weights[0].get("group_size") or 0)
            return bits, max(0, group), 0 if weights[0].get("symmetric", True) else bits
    if method == "modelopt":
        algorithm = str(given.get("quant_algo") or given.get("quantization", {}).get("quant_algo") or "")
        if algorithm in ("FP8", "NVFP4"):
            return (8, 0, 0) if algorithm == "FP8" else (4, 32, 0)  # NVFP4: a scale of 8 bits for 16 weights
    raise UnknownModelError(
        f"Herd does not know how much memory weights quantised by `{method}` take",
        todo="Set tensor_parallel_size and max_model_len yourself.",
    )


def _is_left_out(part: str, left_out: Iterable[str], num_layers: int) -> bool:
    """Whether most layers of a part are named by the list: regular expressions (`re:...`), globs, or names."""
    if part == "vision":
        candidates = [f"vision_model.model.layers.{i}.self_attn.q_proj" for i in range(8)]
    else:
        candidates = [f"model.layers.{i}.{name}" for name in _NAMES[part] for i in range(num_layers)]
    rules = [_rule(entry) for entry in left_out]
    per_name = len(candidates) if part == "vision" else num_layers
    hits = [any(rule(name) or rule(f"language_model.{name}") for rule in rules) for name in candidates]
    # Layers of mixed models have a part only here and there: a quarter of all named means that it is meant.
    return any(sum(hits[start : start + per_name]) * 4 >= per_name for start in range(0, len(hits), per_name))


def _rule(entry: str) -> Any:
    if entry.startswith("re:"):
        pattern = re.compile(entry[3:])
        return lambda name: pattern.match(name) is not None
    if "*" in entry:
        return lambda name: fnmatch.fnmatchcase(name, entry)
    return lambda name: name == entry or name.startswith(f"{entry}.") or f".{entry}." in f".{name}."
