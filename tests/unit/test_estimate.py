from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from cluster.architecture import Architecture
from cluster.estimate import OutputTokens, Pace, cost, data_of, lengths_of, output_tokens
from cluster.families import from_config
from cluster.fit import Fit, Layout, fit
from cluster.gpus import GPUS
from cluster.prices import Price
from cluster.priors import published
from cluster.records import Measured
from cluster.roofline import active_parameters, roofline
from cluster.speed import RowLengths, Speed, estimated_speed, measured_speed
from pipeline.spread import Range
from pipeline.survey import Counted, SampledRow, Survey

EXACT = Range.exactly(1.0)


def surveyed(rows: list[SampledRow], total: int | None = None, error: Range = EXACT) -> Survey:
    reasons = Counter(r.reason for r in rows if r.reason)
    return Survey(
        rows, total or len(rows), 2, "somehow", error, reasons=reasons, examples=dict.fromkeys(reasons, "why")
    )


def row(prompt: int, images: int | None = 0, *, group: int = 0, **changes: Any) -> SampledRow:
    return SampledRow(group, tokens=Counted(prompt, images), **changes)


def test_data_of_a_whole_sample_is_exact() -> None:
    rows = [row(10), row(20), SampledRow(1, "render/prompt_too_long", "too long", Counted(900, 0)), row(30, key="a")]
    data = data_of(surveyed(rows), max_model_len=500, seed=0)
    assert data.prompt_tokens is not None and (data.prompt_tokens.total, data.prompt_tokens.max) == (60, 30)
    assert data.over_long_rows == Range.exactly(1) == data.quarantined_rows
    assert data.quarantine_reasons == {
        "render/prompt_too_long": {"sampled": 1, "rows": {"low": 1, "expected": 1, "high": 1}, "example": "why"}
    }


def test_data_of_a_sample_is_for_all_rows_with_an_interval() -> None:
    rows = [row(10 + n % 3, group=n % 5) for n in range(100)]
    data = data_of(surveyed(rows, 10_000), max_model_len=500, seed=0)
    assert data.prompt_tokens is not None
    assert data.prompt_tokens.total_low < 110_000 < data.prompt_tokens.total_high
    assert data.over_long_rows is not None and data.over_long_rows.expected == 0 < data.over_long_rows.high


def test_data_whose_tokens_are_estimated_says_how_far_off_they_may_be() -> None:
    data = data_of(surveyed([row(110, 100)], error=Range(0.5, 1, 2)), max_model_len=None, seed=0)
    assert data.prompt_tokens is not None
    assert (data.prompt_tokens.total_low, data.prompt_tokens.total_high) == (105, 120)  # images are exact
    assert "over_long_rows" in data.unknown and data.over_long_rows is None


def test_data_with_images_that_nobody_can_count_says_so() -> None:
    data = data_of(surveyed([row(10), row(11, None)]), max_model_len=None, seed=0)
    assert data.image_tokens is None and "Llama 4 only" in data.unknown["image_tokens"]


def test_data_without_a_good_row_has_no_tokens() -> None:
    data = data_of(surveyed([SampledRow(0, "image/image_null", "null")]), max_model_len=9, seed=0)
    assert data.prompt_tokens is None and data.quarantined_rows == Range.exactly(1)
    assert lengths_of(data, OutputTokens(EXACT, "")) is None


def test_output_tokens_are_those_of_records_where_there_are_any() -> None:
    found = output_tokens([], (10.0, "out"), [], 512)
    assert found is not None and found.per_row == Range(8.0, 10.0, 12.5) and found.basis == "answers of out"


def test_output_tokens_of_choices_are_their_own_and_an_end() -> None:
    found = output_tokens([], None, [1, 1, 4], 512)
    assert found is not None and found.per_row == Range(2, 3, 5) and not found.is_upper_bound


def test_output_tokens_else_are_bounded_by_the_limit_of_each_row() -> None:
    found = output_tokens([row(1, max_tokens=10), row(1, max_tokens=30)], None, [], 512)
    assert found is not None and found.per_row == Range(1, 20, 20) and found.is_upper_bound
    assert output_tokens([], None, [], None) is None


def test_cost_counts_start_engines_gpus_and_price() -> None:
    speed = Speed(Range(0.5, 1.0, 2.0), Range.exactly(100), "told")
    found = cost(1000, None, speed, engines=2, gpus_per_engine=8, price=Price(Range.exactly(3.0), "told"))
    assert found.eta_s == Range(350, 600, 1100)
    assert found.gpu_hours == Range(round(350 * 16 / 3600, 3), round(600 * 16 / 3600, 3), round(1100 * 16 / 3600, 3))
    assert found.cost_usd is not None and found.cost_usd.expected == pytest.approx(8.0)


def test_pace_is_that_of_all_engines_at_the_expected_lengths() -> None:
    found = Pace.of(Speed(Range(0.5, 1.0, 2.0), EXACT, ""), LENGTHS, 2)
    assert found.rows_per_s == Range(1, 2, 4)
    assert found.tokens_per_s == {"prompt": Range(1000, 2000, 4000), "output": Range(1000, 2000, 4000)}


def test_cost_leaves_out_rows_that_no_engine_is_asked() -> None:
    rows = [SampledRow(0, "image/image_null", "null"), row(5, key="a"), row(5, key="a"), row(5, key="b")]
    data = data_of(surveyed(rows), max_model_len=None, seed=0)
    found = cost(4, data, Speed(EXACT, Range.exactly(0), ""), engines=1, gpus_per_engine=0, price=None)
    assert found.eta_s == Range.exactly(2) and found.gpu_hours is None


MEASURED = Measured("out", Range(90, 100, 110), 50, 4, Range.exactly(20), 1000)


def test_measured_speed_is_the_records_where_lengths_are_the_same() -> None:
    found = measured_speed([MEASURED], RowLengths(Range.exactly(50), 0, Range.exactly(4)))
    assert found is not None and found.row_s.expected == pytest.approx(0.01)
    assert found.start_s == Range.exactly(20) and "1,000 rows of out" in found.basis


def test_measured_speed_widens_where_lengths_differ() -> None:
    found = measured_speed([MEASURED], RowLengths(Range.exactly(50), 0, Range.exactly(16)))
    assert found is not None and found.row_s.expected == pytest.approx(0.02)
    assert found.row_s.low < 0.01 and found.row_s.high > 0.04


def test_measured_speed_of_records_that_tell_none_is_none() -> None:
    assert measured_speed([replace(MEASURED, rows_per_s=None)], None) is None


LLAMA_4 = {
    "model_type": "llama4",
    "text_config": {
        "model_type": "llama4_text",
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": 48,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "vocab_size": 202048,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 8192,
        "max_position_embeddings": 1048576,
    },
}


def llama_4(experts: int, step: int, **more: Any) -> Architecture:
    text = {**LLAMA_4["text_config"], "num_local_experts": experts, "interleave_moe_layer_step": step}  # type: ignore[dict-item]
    return from_config({**LLAMA_4, "text_config": text, **more})


IGNORED = ["re:.*self_attn", "re:.*shared_expert", "re:.*router", "re:.*feed_forward.gate_proj", "re:.*lm_head"]
FP8 = {"quant_method": "compressed-tensors", "ignore": IGNORED}
FP8["config_groups"] = {"g": {"weights": {"num_bits": 8}}}  # type: ignore[assignment]
MAVERICK = llama_4(128, 2, quantization_config=FP8)
SCOUT = llama_4(16, 1)


def fitted(architecture: Architecture, tp: int = 8) -> Fit:
    return fit(architecture, Layout(tp), GPUS["H100"], max_model_len=8192, kv_cache_dtype="fp8")


def test_active_parameters_of_llama_4_are_about_17_billion() -> None:
    assert active_parameters(MAVERICK) / 1e9 == pytest.approx(17, rel=0.06)
    assert active_parameters(SCOUT) / 1e9 == pytest.approx(17, rel=0.06)


@pytest.mark.parametrize(
    ("architecture", "batch", "published_per_s"), [(MAVERICK, 64, 3164), (SCOUT, 64, 2647), (MAVERICK, 512, 9677)]
)
def test_roofline_meets_published_speeds_within_a_quarter(
    architecture: Architecture, batch: int, published_per_s: float
) -> None:
    found = roofline(architecture, GPUS["H100"], 8, fitted(architecture).kv, batch=batch, request_tokens=1500)
    per_s = 1000 / (1000 * found.input_token_s + 1000 * found.output_token_s)
    assert per_s == pytest.approx(published_per_s, rel=0.25)


LENGTHS = RowLengths(Range.exactly(1000), 0, Range.exactly(1000))


def test_estimated_speed_of_maverick_lies_between_what_is_published() -> None:
    found = estimated_speed("maverick", MAVERICK, fitted(MAVERICK), LENGTHS, 512)
    slow, fast = (published("maverick", "H100", engine)[0].request_s for engine in ("vLLM", "TensorRT-LLM"))
    assert found.row_s.low == pytest.approx(fast, rel=0.25) and found.row_s.high == pytest.approx(slow, rel=0.25)
    assert found.row_s.low < found.row_s.expected < found.row_s.high
    assert "vLLM 0.8.3" in found.basis and "TensorRT-LLM" in found.basis and "not measured here" in found.basis


def test_estimated_speed_of_half_a_node_takes_twice_as_long() -> None:
    whole, half = (estimated_speed("scout", SCOUT, fitted(SCOUT, tp), LENGTHS, 512).row_s for tp in (8, 4))
    assert half.expected == pytest.approx(2 * whole.expected, rel=0.01)


def test_estimated_speed_of_what_nobody_published_is_a_roofline_and_says_so() -> None:
    found = estimated_speed("", SCOUT, fitted(SCOUT), LENGTHS, 512)
    assert "roofline" in found.basis and found.row_s.high / found.row_s.low > 4
