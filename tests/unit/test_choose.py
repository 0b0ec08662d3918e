"""What `engine: auto` chooses for published models on published GPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.architecture import Architecture
from cluster.choose import Choice, Lengths, choose, choose_on_cpu
from cluster.fit import Layout
from cluster.gpus import parse_gpus
from cluster.profiles import PROFILES
from pipeline.errors import ConfigError

from . import architectures as published
from .architectures import architecture_of

SHORT = Lengths(600, 2000)


def architecture(name: str) -> Architecture:
    found = PROFILES[name].architecture
    assert found is not None
    return found


def chosen(name: str, gpus: str, lengths: Lengths | None = SHORT, **own: object) -> Choice:
    return choose(architecture(name), parse_gpus(gpus), own=own, usual=PROFILES[name].engine, lengths=lengths)


def test_scout_int4_is_put_on_single_h100s() -> None:
    found = chosen("scout-int4", "8xH100")
    assert (found.fit.layout, found.replicas) == (Layout(1), 8)
    assert found.engine["tensor_parallel_size"] == 1


def test_maverick_fp8_takes_a_node_and_says_why_experts_are_not_spread() -> None:
    found = chosen("maverick", "2x8xH100")
    assert (found.fit.layout, found.replicas) == (Layout(8), 2)
    assert found.engine["enable_expert_parallel"] is False
    assert any("MI300X" in reason for reason in found.reasons)


def test_maverick_bf16_takes_two_nodes_in_a_pipeline() -> None:
    found = chosen("maverick-bf16", "2x8xH100")
    assert (found.fit.layout, found.replicas) == (Layout(8, 2), 1)


def test_maverick_bf16_on_one_node_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen("maverick-bf16", "8xH100")
    assert "The model does not fit 8xH100: the weights take 93.5 GiB on each GPU (TP8)" in str(caught.value)


def test_scout_bf16_takes_four_h100s_or_two_h200s() -> None:
    assert chosen("scout", "8xH100").fit.layout == Layout(4)
    assert chosen("scout", "8xH200").fit.layout == Layout(2)


def test_small_model_on_a_large_gpu_keeps_its_cache_in_16_bits() -> None:
    found = choose(architecture_of(published.LLAMA_3_8B), parse_gpus("H100"), own={}, lengths=SHORT)
    assert (found.engine["kv_cache_dtype"], found.fit.layout) == ("auto", Layout(1))


def test_gpu_without_fp8_units_is_not_given_a_cache_in_fp8() -> None:
    assert chosen("scout-int4", "8xA100").engine["kv_cache_dtype"] == "auto"


def test_own_settings_are_kept_and_the_rest_is_chosen_around_them() -> None:
    found = chosen("scout-int4", "8xH100", tensor_parallel_size=4, max_num_seqs=32, enable_expert_parallel=True)
    assert found.fit.layout == Layout(4, enable_expert_parallel=True)
    assert (found.engine["max_num_seqs"], found.replicas) == (32, 2)
    assert (
        "Kept as the job has it: tensor_parallel_size 4, max_num_seqs 32, enable_expert_parallel True." in found.reasons
    )


def test_own_settings_that_contradict_the_gpus_are_said() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size 8 asks for more than 4xH100 has"):
        chosen("maverick", "4xH100", tensor_parallel_size=8)


@pytest.mark.parametrize(("name", "layout"), [("scout-int4", Layout(1)), ("maverick", Layout(8))])
def test_choice_without_a_look_at_the_rows_is_the_same(name: str, layout: Layout) -> None:
    assert chosen(name, "2x8xH100", None).fit.layout == layout


def test_context_follows_the_rows_and_else_the_profile() -> None:
    assert chosen("maverick", "8xH100", Lengths(500, 3000)).engine["max_model_len"] == 32_768
    assert chosen("maverick", "8xH100", Lengths(500, 30_000)).engine["max_model_len"] == 60_416
    assert chosen("maverick", "8xH100", None).engine["max_model_len"] == 131_072


def test_context_is_cut_to_what_the_rows_need_where_the_cache_is_small() -> None:
    architecture = architecture_of(published.LLAMA_3_70B, max_position_embeddings=131_072)
    tight = parse_gpus("2xH100")  # 65.7 GiB of weights each
    found = choose(architecture, tight, own={"max_num_seqs": 8, "kv_cache_dtype": "auto"}, lengths=Lengths(500, 3000))
    assert found.engine["max_model_len"] == 6144


def test_context_is_never_beyond_the_models_own() -> None:
    found = choose(architecture_of(published.LLAMA_3_8B), parse_gpus("H100"), own={}, lengths=Lengths(900, 30_000))
    assert found.engine["max_model_len"] == 8192


def test_cpu_is_given_a_context_that_its_cache_holds() -> None:
    engine, reasons = choose_on_cpu(architecture_of(published.LLAMA_3_8B), {"max_num_seqs": 16}, 2**29)
    assert engine == {"max_num_seqs": 16, "max_num_batched_tokens": 4096, "max_model_len": 4096}
    assert "engines run on the CPU" in reasons[0]
    assert reasons[1:] == (
        "max_model_len is 4,096: the cache on the CPU holds no more.",
        "Kept as the job has it: max_num_seqs 16.",
    )


@pytest.mark.parametrize("architecture", [None, architecture_of(published.LLAMA_3_8B)])
def test_cpu_with_room_leaves_the_models_own_context(architecture: Architecture | None) -> None:
    engine, _ = choose_on_cpu(architecture, {}, 2**30)
    assert engine == {"max_num_seqs": 128, "max_num_batched_tokens": 4096}


@given(
    st.sampled_from([name for name, p in PROFILES.items() if p.architecture]),
    st.sampled_from(["8xH100", "2x8xH100", "8xH200", "4x8xB200"]),
    st.integers(10, 20_000),
    st.floats(1, 8),
)
def test_choice_always_fits_and_is_stable(name: str, gpus: str, mean: int, factor: float) -> None:
    lengths = Lengths(mean, int(mean * factor))
    try:
        found = chosen(name, gpus, lengths)
    except ConfigError:
        return
    assert found.fit.fits and found.replicas >= 1
    assert found.engine["max_num_seqs"] <= max(8, found.fit.concurrency(min(mean, found.engine["max_model_len"])))
    assert chosen(name, gpus, lengths) == found
