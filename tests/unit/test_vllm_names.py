from typing import Any

import pytest

from pipeline.config import EngineConfig
from pipeline.engine import vllm_names
from pipeline.engine.vllm_names import check_names
from pipeline.errors import ConfigError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_names, "engine_arg_names", lambda: frozenset({"tensor_parallel_size", "dtype"}))
    monkeypatch.setattr(vllm_names, "sampling_names", lambda: frozenset({"temperature", "max_tokens"}))


@pytest.mark.usefixtures("installed")
def test_check_names_known_pass() -> None:
    check_names(EngineConfig.model_validate({"dtype": "auto", "kind": "vllm"}), {"temperature": 1})


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("engine", "sampling", "message"),
    [
        (
            {"tensor_paralel_size": 2},
            {},
            "vLLM has no engine argument `tensor_paralel_size`. Did you mean `tensor_parallel_size`? "
            "(engine.tensor_paralel_size).",
        ),
        (
            {},
            {"temprature": 1},
            "vLLM has no sampling parameter `temprature`. Did you mean `temperature`? (sampling.temprature).",
        ),
    ],
)
def test_check_names_unknown_refused_with_nearest(
    engine: dict[str, Any], sampling: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names(EngineConfig.model_validate(engine), sampling)
    assert str(caught.value) == message


def test_check_names_without_vllm_lets_all_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_names, "engine_arg_names", frozenset)
    monkeypatch.setattr(vllm_names, "sampling_names", frozenset)
    check_names(EngineConfig.model_validate({"anything": 1}), {"whatever": 2})
