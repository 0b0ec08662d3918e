"""Reads a model's `config.json` as an `Architecture`: the families whose layers Herd knows, and how each counts its parameters.

Pure but for `from_folder`. Counts leave out norms and biases (less than a thousandth). A test holds them against the
totals that the models' authors publish.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.architecture import Architecture, Parameters, Vision
from cluster.quantisation import UnknownModelError, read_quantisation
from cluster.tiles import Tiling
from pipeline.errors import ConfigError

Config = Mapping[str, Any]

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def from_config(config: Config, processor: Config | None = None) -> Architecture:
    """The architecture in a `config.json`. `processor` is the image part of a `processor_config.json` or a
    `preprocessor_config.json`; without it a Llama 4 cuts images as Scout and Maverick do.

    Raises:
        UnknownModelError: a family or quantisation that Herd does not know, or a config that lacks what it needs.
    """
    family = str(config.get("model_type", "?"))
    read = FAMILIES.get(family)
    if read is None:
        raise UnknownModelError(
            f"Herd does not know how a model of type `{family}` lies in memory",
            todo=f"Set tensor_parallel_size and max_model_len yourself. Known types: {', '.join(FAMILIES)}.",
        )
    try:
        found = read(config)
        quantisation = read_quantisation(config, found.num_layers, found.vision is not None)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise UnknownModelError(
            f"The config.json of a `{family}` is not as expected: {e!r}",
            todo="Set tensor_parallel_size and max_model_len yourself.",
        ) from None
    dtype = str(config.get("dtype") or config.get("torch_dtype") or _text(config).get("torch_dtype") or "bfloat16")
    # float32 checkpoints are served in 16 bits by vLLM's `dtype: auto`
    found = replace(found, dtype_bytes=min(2, DTYPE_BYTES.get(dtype, 2)), quantisation=quantisation)
    if found.vision is None:
        return found
    return replace(found, tiling=_tiling(found.vision, config, processor or {}))


def from_folder(folder: Path) -> Architecture:
    """The architecture of a model's local folder, with the true size of its weight files.

    Raises:
        UnknownModelError: as `from_config`.
        ConfigError: there is no config.json, or it is no JSON object.
    """
    config = _json(folder / "config.json")
    if config is None:
        raise ConfigError("The model has no config.json that can be read", where=str(folder))
    processor = next(
        filter(None, (_json(folder / f) for f in ("processor_config.json", "preprocessor_config.json"))), {}
    )
    found = from_config(config, processor.get("image_processor", processor))
    index, whole = _json(folder / "model.safetensors.index.json"), folder / "model.safetensors"
    if index is not None:
        size = (index.get("metadata") or {}).get("total_size")
    else:
        size = whole.stat().st_size if whole.is_file() else None
    return replace(found, checkpoint_bytes=int(size) if size else None)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def _text(config: Config) -> Config:
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def _common(config: Config) -> dict[str, Any]:
    """What all families have in common, with the parameters that go with it."""
    heads, hidden, layers = config["num_attention_heads"], config["hidden_size"], config["num_hidden_layers"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    embedding = config["vocab_size"] * hidden
    return {
        "family": config["model_type"],
        "num_layers": layers,
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": config["vocab_size"],
        "max_context": config["max_position_embeddings"],
        "attention": layers * hidden * head_dim * (2 * heads + 2 * kv_heads),
        "embedding": embedding,
        "head": 0 if config.get("tie_word_embeddings", False) else embedding,
    }


def _architecture(common: dict[str, Any], **more: Any) -> Architecture:
    parameters = Parameters(
        **{k: common.pop(k) for k in ("attention", "embedding", "head")},
        **{k: more.pop(k) for k in ("dense", "shared", "routed", "replicated") if k in more},
    )
    return Architecture(**common, parameters=parameters, **more)


def _dense(config: Config) -> Architecture:
    """Llama, Mistral, Qwen2, Qwen3: three matrices a feed-forward layer, and perhaps a sliding window."""
    common = _common(config)
    ffn, layers = config["intermediate_size"], common["num_layers"]
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    kinds = config.get("layer_types") or (["sliding_attention"] * layers if window else [])
    return _architecture(
        common,
        dense=layers * 3 * common["hidden_size"] * ffn,
        ffn_size=ffn,
        num_local_layers=kinds.count("sliding_attention"),
        local_tokens=window or 0,
    )


def _mixtral(config: Config) -> Architecture:
    return _experts(config, config["num_local_experts"], config["intermediate_size"])


def _qwen3_moe(config: Config) -> Architecture:
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise ValueError("layers without experts among those with")
    return _experts(config, config["num_experts"], config["moe_intermediate_size"])


def _experts(config: Config, experts: int, expert_ffn: int) -> Architecture:
    """Every layer a mixture of experts."""
    common = _common(config)
    layers, hidden = common["num_layers"], common["hidden_size"]
    return _architecture(
        common,
        dense=0,
        routed=layers * experts * 3 * hidden * expert_ffn,
        replicated=layers * experts * hidden,
        ffn_size=0,
        num_moe_layers=layers,
        num_experts=experts,
        experts_per_token=config["num_experts_per_tok"],
        expert_ffn_size=expert_ffn,
    )


def _deepseek(config: Config) -> Architecture:
    """DeepSeek V2, V3 and R1: latent attention, whose down projections and cache every GPU holds whole, the first layers
    dense. The layers for multi-token prediction are left out, as vLLM leaves them."""
    common = _common(config)
    layers, hidden, heads = common["num_layers"], common["hidden_size"], common["num_heads"]
    latent, rope, nope, value = (
        config[k] for k in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    query, ffn, expert_ffn = config.get("q_lora_rank"), config["intermediate_size"], config["moe_intermediate_size"]
    if config.get("moe_layer_freq", 1) != 1:
        raise ValueError("moe_layer_freq is not 1")
    moe = layers - config["first_k_dense_replace"]
    up = heads * (nope + rope) * (query or hidden) + latent * heads * (nope + value) + heads * value * hidden
    down = hidden * (latent + rope) + (hidden * query if query else 0)
    common["attention"] = layers * up
    experts = config["n_routed_experts"]
    return _architecture(
        common,
        dense=(layers - moe) * 3 * hidden * ffn,
        shared=moe * (config.get("n_shared_experts") or 0) * 3 * hidden * expert_ffn,
        routed=moe * experts * 3 * hidden * expert_ffn,
        replicated=layers * down + moe * experts * hidden,
        ffn_size=ffn,
        latent_kv_values=latent + rope,
        num_moe_layers=moe,
        num_experts=experts,
        experts_per_token=config["num_experts_per_tok"],
        expert_ffn_size=expert_ffn,
    )


def _llama4(config: Config) -> Architecture:
    """Llama 4: chunked local layers without, and every fourth with, a view of everything; a shared expert beside one routed
    in each layer of experts; a vision tower where there is a `vision_config`."""
    text = _text(config)
    common = {**_common(text), "family": config["model_type"]}
    layers, hidden = common["num_layers"], common["hidden_size"]
    ffn, expert_ffn, experts = text["intermediate_size_mlp"], text["intermediate_size"], text["num_local_experts"]
    step = text.get("interleave_moe_layer_step", 1)
    moe_layers = text.get("moe_layers")
    moe = len(moe_layers if moe_layers is not None else range(step - 1, layers, step))
    interval = text.get("no_rope_layer_interval", 4)
    has_rope = text.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
    chunk = text.get("attention_chunk_size")
    vision, vision_parameters = _llama4_vision(config.get("vision_config"), hidden)
    found = _architecture(
        common,
        dense=(layers - moe) * 3 * hidden * ffn,
        shared=moe * 3 * hidden * expert_ffn,
        routed=moe * experts * 3 * hidden * expert_ffn,
        replicated=moe * experts * hidden,
        ffn_size=ffn if moe < layers else 0,
        num_local_layers=sum(map(bool, has_rope)) if chunk else 0,
        local_tokens=chunk or 0,
        is_chunked=bool(chunk),
        num_moe_layers=moe,
        num_experts=experts,
        experts_per_token=text.get("num_experts_per_tok", 1),
        expert_ffn_size=expert_ffn,
        vision=vision,
    )
    return replace(found, parameters=replace(found.parameters, vision=vision_parameters))


def _llama4_vision(config: Config | None, text_hidden: int) -> tuple[Vision | None, int]:
    """The tower and its parameters: its layers, the patches' embedding, the pixel shuffle's two matrices, the projector."""
    if not config:
        return None, 0
    hidden, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tower = Vision(layers, hidden, config["num_attention_heads"], ffn, config["image_size"], config["patch_size"])
    parameters = layers * (4 * hidden * hidden + 2 * hidden * ffn)
    parameters += (3 * tower.patch_size**2 + tower.patches_per_tile) * hidden
    inner, outer = config["projector_input_dim"], config["projector_output_dim"]
    parameters += ffn * inner + inner * outer + config["vision_output_dim"] * text_hidden
    return tower, parameters


def _tiling(tower: Vision, config: Config, processor: Config) -> Tiling:
    ratio = (config.get("vision_config") or {}).get("pixel_shuffle_ratio", 0.5)
    return Tiling(
        tile_size=(processor.get("size") or {}).get("height", tower.image_size),
        max_tiles=processor.get("max_patches", Tiling().max_tiles),
        tokens_per_tile=round((tower.image_size // tower.patch_size) ** 2 * ratio**2),
        resize_to_max_canvas=bool(processor.get("resize_to_max_canvas", False)),
    )


FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    "llama4": _llama4,
    "llama4_text": _llama4,
    "llama": _dense,
    "mistral": _dense,
    "qwen2": _dense,
    "qwen3": _dense,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
}
