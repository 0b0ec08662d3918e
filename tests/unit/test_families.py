import json
from pathlib import Path
from typing import Any

import pytest

import jobs.demo
from cluster.families import from_config, from_folder
from cluster.quantisation import UnknownModelError
from cluster.tiles import Tiling
from pipeline.errors import ConfigError

from . import architectures as published
from .architectures import architecture_of

DEMO = Path(str(jobs.demo.__file__)).parent / "model"


@pytest.mark.parametrize(
    ("config", "billions"),
    [
        (published.LLAMA_3_8B, 8.03),
        (published.LLAMA_3_70B, 70.55),
        (published.QWEN_2_5_7B, 7.62),
        (published.QWEN_3_0_6B, 0.596),
        (published.QWEN_3_30B_A3B, 30.5),
        (published.MIXTRAL_8X7B, 46.7),
        (published.MISTRAL_7B_V01, 7.24),
        (published.DEEPSEEK_V3, 671.0),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_parameters_are_as_many_as_published(config: dict[str, Any], billions: float) -> None:
    assert architecture_of(config).parameters.total / 1e9 == pytest.approx(billions, rel=0.003)


def test_demo_model_is_read_with_its_true_size() -> None:
    found = from_folder(DEMO)
    assert (found.family, found.num_layers, found.num_global_layers, found.local_tokens) == ("llama4", 4, 1, 512)
    assert (found.num_moe_layers, found.num_experts, found.expert_ffn_size, found.ffn_size) == (2, 4, 64, 256)
    assert found.checkpoint_bytes == (DEMO / "model.safetensors").stat().st_size == found.weight_bytes
    assert found.part_bytes("routed") == pytest.approx(2 * 2 * 4 * 3 * 128 * 64, rel=0.05)


def test_demo_model_counts_as_its_weights_do() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    counted = from_config(config).parameters.total
    assert 2 * counted == pytest.approx((DEMO / "model.safetensors").stat().st_size, rel=0.02)


def test_size_of_the_index_goes_before_arithmetic(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 16_060_522_496}}))
    assert from_folder(tmp_path).weight_bytes == 16_060_522_496


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json that can be read"):
        from_folder(tmp_path)


def test_llama4_layers_are_global_every_fourth() -> None:
    text = {
        **published.LLAMA_3_8B,
        "model_type": "llama4_text",
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "num_hidden_layers": 48,
        "attention_chunk_size": 8192,
        "interleave_moe_layer_step": 2,
    }
    found = from_config(text)
    assert (found.num_global_layers, found.num_local_layers, found.is_chunked) == (12, 36, True)
    assert (found.num_moe_layers, found.vision, found.tiling) == (24, None, None)


def test_sliding_window_is_read_where_it_is_used() -> None:
    mistral = architecture_of(published.MISTRAL_7B_V01)
    assert (mistral.num_local_layers, mistral.local_tokens, mistral.is_chunked) == (32, 4096, False)
    assert architecture_of(published.QWEN_2_5_7B).num_local_layers == 0


def test_tied_embeddings_are_held_once() -> None:
    assert architecture_of(published.QWEN_3_0_6B).parameters.head == 0
    assert architecture_of(published.LLAMA_3_8B).parameters.head == 128256 * 4096


def test_deepseek_caches_latent_values() -> None:
    assert architecture_of(published.DEEPSEEK_V3).latent_kv_values == 576


@pytest.mark.parametrize(
    "changes",
    [{"model_type": "mamba2"}, {"model_type": "gemma3"}, {"hidden_size": None}, {"num_attention_heads": 0}],
)
def test_model_that_is_not_understood_is_said_so(changes: dict[str, Any]) -> None:
    with pytest.raises(UnknownModelError, match=r"does not know how|not as expected"):
        architecture_of(published.LLAMA_3_8B, **changes)


def test_processor_says_how_images_are_cut() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    assert from_config(config).tiling == Tiling(tile_size=56, tokens_per_tile=4)
    cut = from_config(config, {"max_patches": 4, "size": {"height": 56, "width": 56}, "resize_to_max_canvas": True})
    assert cut.tiling == Tiling(56, 4, 4, True)


MOE = published.QWEN_3_30B_A3B


def quantised(config: dict[str, Any], **quantization_config: Any) -> Any:
    return architecture_of(config, quantization_config=quantization_config).quantisation


def w4a16(**changes: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "group_size": 128, "symmetric": True}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}, **changes}


def test_quantised_parts_follow_the_list_of_what_is_left_out() -> None:
    found = quantised(MOE, **w4a16(ignore=["re:.*lm_head", "re:.*self_attn", "re:.*mlp.gate$"]))
    assert found.bits == pytest.approx(4.125)
    assert "routed" in found.parts and "attention" not in found.parts


def test_quantised_parts_follow_a_list_of_every_layer() -> None:
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(48) for p in "qkvo"]
    found = quantised(MOE, quant_method="fp8", modules_to_not_convert=names)
    assert (found.bits, "attention" in found.parts, "routed" in found.parts) == (8, False, True)


def test_quantised_parts_follow_globs() -> None:
    found = quantised(MOE, quant_method="modelopt", quant_algo="FP8", ignore=["*self_attn*", "lm_head"])
    assert ("attention" in found.parts, "routed" in found.parts) == (False, True)


@pytest.mark.parametrize(
    ("config", "bits"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
    ],
)
def test_quantisation_takes_so_many_bits(config: dict[str, Any], bits: float) -> None:
    assert quantised(published.LLAMA_3_8B, **config).bits == pytest.approx(bits)


@pytest.mark.parametrize("config", [{"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "awq"}])
def test_quantisation_of_unknown_size_is_said_so(config: dict[str, Any]) -> None:
    with pytest.raises(UnknownModelError, match="does not know how much memory"):
        quantised(published.LLAMA_3_8B, **config)


def test_llama_3_8b_in_awq_is_as_large_as_its_files() -> None:
    found = architecture_of(
        published.LLAMA_3_8B, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128}
    )
    assert found.weight_bytes / 1e9 == pytest.approx(5.74, rel=0.02)  # casperhansen/llama-3-8b-instruct-awq
