import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.architecture import Architecture
from cluster.fit import Fit, Layout, fit, kv_cost, weights_bytes_per_gpu
from cluster.gpus import GIB, GPUS, Gpu
from cluster.profiles import PROFILES

from . import architectures as published
from .architectures import architecture_of

H100 = GPUS["H100"]
KIB = 1024


def profile(name: str) -> Architecture:
    found = PROFILES[name].architecture
    assert found is not None
    return found


def fit_of(name: str, layout: Layout, gpu: Gpu = H100, **settings: Any) -> Fit:
    return fit(profile(name), layout, gpu, **{"max_model_len": 8192, **settings})


def test_weights_of_maverick_fp8_are_those_of_vllms_log() -> None:
    # vLLM issue #16152: "Model loading took 48.8682 GiB" on each of eight H100s
    assert weights_bytes_per_gpu(profile("maverick"), Layout(8)) / GIB == pytest.approx(48.8682, rel=0.02)


def test_weights_of_llama_3_8b_are_those_of_vllms_log() -> None:
    # vLLM pull request #10511: 14.96 GiB on one H100, 7.48 on each of two
    architecture = architecture_of(published.LLAMA_3_8B)
    assert weights_bytes_per_gpu(architecture, Layout(1)) / GIB == pytest.approx(14.96, rel=0.005)
    assert weights_bytes_per_gpu(architecture, Layout(2)) / GIB == pytest.approx(7.48, rel=0.005)


def test_scout_int4_on_one_h200_takes_what_vllm_said_there() -> None:
    # docs/gpu.md: "Model loading took 61.3 GiB", "Available KV cache memory: 63.63 GiB", "GPU KV cache size: 855,350 tokens,
    # Maximum concurrency for 32,768 tokens per request: 26.10x"
    h200 = GPUS["H200"]
    found = fit_of(
        "scout-int4",
        Layout(1),
        h200,
        max_model_len=32_768,
        max_num_seqs=128,
        max_num_batched_tokens=8192,
        kv_cache_dtype="fp8",
        has_images=False,
    )
    assert h200.memory_bytes / GIB == pytest.approx(139.8, abs=0.05)
    assert found.weights_bytes_per_gpu / GIB == pytest.approx(61.3, rel=0.02)
    assert found.kv_bytes / GIB == pytest.approx(63.63, rel=0.01)
    assert found.concurrency(32_768) == pytest.approx(26.10, rel=0.01)
    assert found.kv_token_capacity == pytest.approx(855_350, rel=0.01)


@pytest.mark.parametrize(
    ("layout", "scout", "maverick", "maverick_bf16"),
    [
        (Layout(8), 25.3, 48.5, 93.5),
        (Layout(8, enable_expert_parallel=True), 25.3, 48.5, 93.5),
        (Layout(4), 50.6, 97.0, 187.0),
        (Layout(8, 2), 12.8, 24.4, 46.9),
        (Layout(4, dp=2, enable_expert_parallel=True), 36.5, 56.2, None),
        (Layout(1, dp=8, enable_expert_parallel=True), 44.9, 73.0, None),
        (Layout(8, dp=2, enable_expert_parallel=True), 23.9, 30.9, 53.4),
    ],
    ids=str,
)
def test_weights_per_gpu_are_those_of_the_table(
    layout: Layout, scout: float, maverick: float, maverick_bf16: float | None
) -> None:
    for name, expected in (("scout", scout), ("maverick", maverick), ("maverick-bf16", maverick_bf16)):
        if expected is not None:
            found = weights_bytes_per_gpu(profile(name), layout) / GIB
            assert found == pytest.approx(expected, rel=0.005), name


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("maverick", Layout(8)),
        ("maverick", Layout(8, enable_expert_parallel=True)),
        ("maverick", Layout(4, dp=2, enable_expert_parallel=True)),
        ("maverick-bf16", Layout(8, 2)),
        ("maverick-bf16", Layout(8, dp=2, enable_expert_parallel=True)),
        ("maverick-int4", Layout(4)),
        ("scout", Layout(4)),
        ("scout-fp8", Layout(2)),
        ("scout-int4", Layout(1)),
    ],
    ids=str,
)
def test_layout_that_is_known_to_fit_an_h100_fits(name: str, layout: Layout) -> None:
    assert fit_of(name, layout).reasons == ()


@pytest.mark.parametrize(
    ("name", "layout", "why"),
    [
        ("maverick", Layout(16), "40 attention heads are not divisible by tensor_parallel_size 16"),
        ("maverick", Layout(4), "the weights take 97.0 GiB on each GPU (TP4), more than the 72.9 GiB"),
        ("maverick", Layout(1, dp=8, enable_expert_parallel=True), "the weights take 73.0 GiB on each GPU"),
        ("maverick-bf16", Layout(8), "the weights take 93.5 GiB on each GPU (TP8)"),
        ("scout", Layout(2), "the weights take 101.2 GiB on each GPU (TP2)"),  # vLLM issue #16712: out of memory
        ("scout-fp8", Layout(1), "the weights take 106.7 GiB on each GPU (TP1)"),
        ("scout", Layout(3), "40 attention heads are not divisible by tensor_parallel_size 3"),
    ],
    ids=str,
)
def test_layout_that_cannot_run_is_refused_with_the_reason(name: str, layout: Layout, why: str) -> None:
    found = fit_of(name, layout)
    assert not found.fits
    assert any(why in reason for reason in found.reasons), found.reasons


@pytest.mark.parametrize(("name", "tokens"), [("scout", 1_000_000), ("maverick", 430_000)])
def test_context_on_eight_h100s_is_near_what_vllm_published(name: str, tokens: int) -> None:
    # vLLM's blog (0.8.3): the longest contexts it serves, BF16 cache, no hybrid cache yet; then with FP8 both go
    then = fit_of(name, Layout(8), max_model_len=tokens, max_num_seqs=256, is_cache_hybrid=False)
    assert then.fits
    assert tokens <= then.largest_context <= 2 * tokens
    assert fit_of(name, Layout(8), max_model_len=tokens, kv_cache_dtype="fp8").fits


def test_context_beyond_the_models_own_is_refused() -> None:
    found = fit_of("maverick", Layout(8), max_model_len=2_000_000, kv_cache_dtype="fp8")
    assert found.reasons == ("max_model_len 2,000,000 is beyond the model's own 1,048,576",)


def test_context_that_the_cache_does_not_hold_is_refused_with_numbers() -> None:
    found = fit_of("scout-int4", Layout(1), max_model_len=1_000_000)
    assert not found.fits
    assert "a request of 1,000,000 tokens needs" in found.reasons[0]
    assert found.margin < 0
    assert fit_of("scout-int4", Layout(1), max_model_len=found.largest_context).fits


@pytest.mark.parametrize(("dtype", "kib"), [("auto", 24), ("fp8", 12)])
def test_kv_of_a_token_on_eight_gpus_is_as_computed_by_hand(dtype: str, kib: int) -> None:
    assert kv_cost(profile("scout"), Layout(8), kv_cache_dtype=dtype).bytes_per_token == kib * KIB


def test_kv_heads_are_copied_where_there_are_more_gpus_than_heads() -> None:
    architecture = replace(profile("scout"), num_kv_heads=2)
    costs = [kv_cost(architecture, Layout(tp)).bytes_per_token for tp in (1, 2, 4, 8)]
    assert costs == [2 * costs[1], costs[1], costs[1], costs[1]]


def test_kv_of_local_layers_ends_with_the_chunk_and_what_is_in_flight() -> None:
    kv = kv_cost(profile("maverick"), Layout(8), kv_cache_dtype="fp8", max_num_batched_tokens=8192)
    tokens = 100_000
    assert kv.request_bytes(tokens) == (12 * tokens + 36 * (8192 + 2 * 8192)) * 2 * 128
    assert kv.request_bytes(1000) == 48 * 1000 * 2 * 128


def test_kv_longest_request_is_the_inverse_of_its_cost() -> None:
    for architecture in (
        profile("scout"),
        architecture_of(published.LLAMA_3_8B),
        architecture_of(published.MIXTRAL_8X7B),
    ):
        kv = kv_cost(architecture, Layout(2))
        for tokens in (1, 1000, 24_576, 24_577, 500_000):
            assert abs(kv.longest(kv.request_bytes(tokens)) - tokens) <= 1
        assert kv.longest(0) == kv.longest(-5) == 0


def test_kv_of_a_sliding_window_alone_has_no_longest_request() -> None:
    found = fit(architecture_of(published.MISTRAL_7B_V01), Layout(1), H100, max_model_len=32768)
    assert found.largest_context == 32768
    assert found.kv.request_bytes(32768) == found.kv.request_bytes(30000)


def test_deepseek_v3_needs_more_than_eight_h100s_and_eight_h200s_do() -> None:
    architecture = architecture_of(published.DEEPSEEK_V3)  # DeepSeek's and vLLM's own recipes: 8xH200, or 2x8xH100
    assert not fit(architecture, Layout(8), H100, max_model_len=8192).fits
    assert fit(architecture, Layout(8), GPUS["H200"], max_model_len=8192).fits
    assert kv_cost(architecture, Layout(8)).bytes_per_token == 61 * 576 * 2


def test_reserve_without_images_and_graphs_is_smaller() -> None:
    full = fit_of("scout", Layout(8), max_num_seqs=16)
    assert fit_of("scout", Layout(8), max_num_seqs=16, has_images=False).reserve_bytes < full.reserve_bytes
    assert fit_of("scout", Layout(8), max_num_seqs=16, enforce_eager=True).reserve_bytes == full.reserve_bytes - GIB


def test_reserve_of_llama_3_8b_is_that_of_vllms_log() -> None:
    # vLLM pull request #10511: 1.79 GiB beside the tensors and 1.26 of activations, 256 sequences, no graphs counted
    found = fit(
        architecture_of(published.LLAMA_3_8B), Layout(1), H100, max_model_len=8192, max_num_seqs=256, enforce_eager=True
    )
    assert found.reserve_bytes / GIB == pytest.approx(1.79 + 1.26, rel=0.03)


def test_data_parallel_vision_is_whole_on_each_gpu() -> None:
    whole = weights_bytes_per_gpu(profile("scout"), Layout(8), mm_encoder_tp_mode="data")
    assert whole - weights_bytes_per_gpu(profile("scout"), Layout(8)) == pytest.approx(1.74e9 * 7 / 8, rel=0.01)


def test_expert_parallel_without_experts_is_refused() -> None:
    layout = Layout(2, enable_expert_parallel=True)
    found = fit(architecture_of(published.LLAMA_3_8B), layout, H100, max_model_len=8192)
    assert found.reasons == ("enable_expert_parallel needs a mixture of experts",)


def test_fit_as_plain_data_holds_what_a_reader_needs() -> None:
    found = fit_of("maverick", Layout(8), kv_cache_dtype="fp8").to_json()
    assert (found["layout"], found["gpus"], found["gpu"], found["fits"]) == ("TP8", 8, "H100", True)
    assert found["kv_bytes"] == found["budget_bytes"] - found["weights_bytes_per_gpu"] - found["reserve_bytes"]
    assert found["kv_token_capacity"] == pytest.approx(found["concurrency"] * 8192, rel=0.01)


NAMES = [name for name, p in PROFILES.items() if p.architecture is not None]
LAYOUTS = [Layout(t, p, d, e) for t, p, d, e in itertools.product((1, 2, 4, 8), (1, 2), (1, 2), (False, True))]
settings = {
    "max_model_len": st.integers(1, 1_000_000),
    "max_num_seqs": st.sampled_from([16, 128, 1024]),
    "max_num_batched_tokens": st.sampled_from([2048, 8192, 16384]),
    "kv_cache_dtype": st.sampled_from(["auto", "fp8"]),
    "is_cache_hybrid": st.booleans(),
}


@given(
    name=st.sampled_from(NAMES),
    layout=st.sampled_from(LAYOUTS),
    gib=st.integers(1, 300),
    more=st.integers(0, 300),
    given_=st.fixed_dictionaries(settings),
)
def test_more_memory_never_turns_yes_into_no_and_never_shrinks_concurrency(
    name: str, layout: Layout, gib: int, more: int, given_: dict[str, Any]
) -> None:
    small, large = (
        fit(profile(name), layout, replace(H100, memory_bytes=memory * GIB), **given_) for memory in (gib, gib + more)
    )
    assert large.fits >= small.fits
    assert large.margin >= small.margin
    assert large.largest_context >= small.largest_context
    for tokens in (1, 1000, given_["max_model_len"]):
        assert large.concurrency(tokens) >= small.concurrency(tokens)


@given(
    name=st.sampled_from(NAMES),
    layout=st.sampled_from(LAYOUTS),
    tokens=st.integers(1, 10_000_000),
    more=st.integers(0, 1_000_000),
)
def test_longer_requests_never_cost_less(name: str, layout: Layout, tokens: int, more: int) -> None:
    kv = kv_cost(profile(name), layout)
    assert kv.request_bytes(tokens + more) >= kv.request_bytes(tokens)
    assert fit_of(name, layout).concurrency(tokens + more) <= fit_of(name, layout).concurrency(tokens)


@given(name=st.sampled_from(NAMES), layout=st.sampled_from(LAYOUTS), gib=st.integers(40, 200), data=st.data())
def test_fit_says_no_exactly_where_it_gives_a_reason(name: str, layout: Layout, gib: int, data: st.DataObject) -> None:
    found = fit(
        profile(name), layout, replace(H100, memory_bytes=gib * GIB), **{k: data.draw(v) for k, v in settings.items()}
    )
    assert found.fits == (not found.reasons)
    if found.fits:
        assert found.margin >= 0
        assert found.max_model_len <= found.largest_context + 1
        assert found.concurrency(found.max_model_len) >= 1
