import pytest

from cluster.prices import DEFAULT_PRICES, parse_prices, price_of
from cluster.priors import PRIORS, node_request_s, published
from pipeline.errors import ConfigError
from pipeline.spread import Range


@pytest.mark.parametrize("gpu", ["H100", "H200"])
@pytest.mark.parametrize("engine", ["vLLM", "TensorRT-LLM"])
def test_maverick_priors_are_met_by_the_line_through_them(gpu: str, engine: str) -> None:
    priors = published("maverick", gpu, engine)
    assert len(priors) == 3
    for p in priors:
        found = node_request_s(priors, p.input_tokens, p.output_tokens, input_token_s=0.0)
        assert found == pytest.approx(p.request_s, rel=0.06)


def test_longer_prompts_and_answers_take_longer() -> None:
    priors = published("maverick", "H100", "vLLM")
    short, long_prompt, long_answer = (
        node_request_s(priors, *lengths, input_token_s=0.0) for lengths in ((1000, 100), (9000, 100), (1000, 900))
    )
    assert short < long_prompt and short < long_answer


def test_a_single_prior_is_split_by_the_time_of_an_input_token() -> None:
    (prior,) = published("scout", "H100", "vLLM")
    whole = node_request_s([prior], 1000, 1000, input_token_s=1e-5)
    assert whole == pytest.approx(prior.request_s)
    assert node_request_s([prior], 2000, 1000, input_token_s=1e-5) == pytest.approx(whole + 0.01)


def test_published_table_is_as_it_was_published() -> None:
    found = {(p.engine, p.model, p.gpu, p.input_tokens): p.output_tokens_per_s for p in PRIORS}
    assert found["vLLM", "maverick", "H100", 10_000] == 1663
    assert found["TensorRT-LLM", "maverick", "H200", 128] == 40_572
    assert found["TensorRT-LLM", "scout-fp8", "H100", 1000] == 12_129


def test_price_of_the_command_goes_before_the_jobs_and_the_tables() -> None:
    given = parse_prices(["h100=2.99"])
    assert price_of("H100", given, 5.0) is not None and price_of("H100", given, 5.0).usd == Range.exactly(2.99)  # type: ignore[union-attr]
    of_job = price_of("H100", {}, 5.0)
    assert of_job is not None and of_job.basis == "cost.gpu_hour_usd = 5 of the job"
    assert price_of("H100", {}, None) == DEFAULT_PRICES["H100"]
    assert price_of("X9", {}, None) is None


@pytest.mark.parametrize("text", ["H100", "=3", "H100=", "H100=cheap", "H100=-1", "H100=inf", "H100=nan"])
def test_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no price"):
        parse_prices([text])
