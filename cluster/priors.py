"""Published speeds of Llama 4, as priors until a run of one's own has measured something. Pure.

Each is what its publisher says of its own engine on its own node; none was measured with Herd. Between published lengths the
seconds of a request are taken to be `a * input tokens + b * output tokens`, which the published figures of one engine
follow within a tenth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

VLLM = "a published benchmark of vLLM 0.8.3"
TENSORRT_LLM = "NVIDIA's performance overview of TensorRT-LLM"


@dataclass(frozen=True, slots=True)
class Prior:
    """A published speed of a node of eight GPUs."""

    source: str
    engine: str
    model: str
    """A profile's name, see `herd models`."""
    gpu: str
    concurrency: int | None
    """Requests at a time; None is full load."""
    input_tokens: int
    output_tokens: int
    output_tokens_per_s: float

    @property
    def request_s(self) -> float:
        """Seconds of the node for one request."""
        return self.output_tokens / self.output_tokens_per_s


NODE_GPUS = 8


def _rows() -> list[Prior]:
    table = (
        (VLLM, "vLLM", "scout", 64, 1000, 1000, 2647, 2997),
        (VLLM, "vLLM", "maverick", 64, 1000, 1000, 3164, 3552),
        (VLLM, "vLLM", "maverick", 64, 5000, 1000, 2444, 2788),
        (VLLM, "vLLM", "maverick", 64, 10_000, 1000, 1663, 2381),
        (TENSORRT_LLM, "TensorRT-LLM", "maverick", None, 1000, 1000, 9677, 31_782),
        (TENSORRT_LLM, "TensorRT-LLM", "maverick", None, 128, 2048, 10_829, 40_572),
        (TENSORRT_LLM, "TensorRT-LLM", "maverick", None, 5000, 500, 3457, 8456),
        (TENSORRT_LLM, "TensorRT-LLM", "scout-fp8", None, 1000, 1000, 12_129, 21_636),
    )
    return [
        Prior(source, engine, model, gpu, concurrency, inputs, outputs, float(speed))
        for source, engine, model, concurrency, inputs, outputs, h100, h200 in table
        for gpu, speed in (("H100", h100), ("H200", h200))
    ]


PRIORS = tuple(_rows())


def published(model: str, gpu: str, engine: str) -> list[Prior]:
    """The priors of a profile on a kind of GPU under an engine."""
    return [p for p in PRIORS if (p.model, p.gpu, p.engine) == (model, gpu, engine)]


def node_request_s(
    priors: Sequence[Prior], input_tokens: float, output_tokens: float, *, input_token_s: float
) -> float:
    """Seconds of a node for a request of these lengths, from priors of one model, GPU and engine.

    `a` and `b` are fitted by least squares of the relative errors and kept from falling below 0; where all priors have the
    same ratio of lengths, `a` is `input_token_s`, which a roofline gives.
    """
    lengths = np.array([(p.input_tokens, p.output_tokens) for p in priors], np.float64)
    seconds = np.array([p.request_s for p in priors])
    if np.linalg.matrix_rank(lengths) < 2:
        a = min(input_token_s, float((seconds / lengths[:, 0]).min()))
        b = float(np.mean((seconds - a * lengths[:, 0]) / lengths[:, 1]))
        return a * input_tokens + b * output_tokens
    a, b = np.linalg.lstsq(lengths / seconds[:, None], np.ones(len(priors)), rcond=None)[0]
    if min(a, b) < 0:
        keep = 1 if a < 0 else 0
        only = float(np.mean(seconds / lengths[:, keep]))
        a, b = (0.0, only) if keep else (only, 0.0)
    return float(a * input_tokens + b * output_tokens)
