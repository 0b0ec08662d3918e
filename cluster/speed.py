"""How long one engine takes for a row: by one's own records, else by published figures, else by a roofline. Pure.

Whichever it is, it is named, and the range is as wide as its kind deserves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.architecture import Architecture
from cluster.fit import Fit
from cluster.priors import NODE_GPUS, Prior, node_request_s, published
from cluster.records import Measured
from cluster.roofline import Roofline, roofline
from pipeline.spread import Range

SPREAD_OF_RECORDS = Range(0.85, 1.0, 1.2)
"""How much longer or shorter the next run of the same job may take: what nodes, neighbours and storage do to it."""
SPREAD_OF_ROOFLINE = Range(0.6, 1.0, 2.5)
FULL_LOAD_GAIN = 3.0
"""TensorRT-LLM at full load over vLLM at 64 requests at a time: 9,677 over 3,164 for Maverick on eight H100s."""
START_S = Range(120.0, 300.0, 900.0)
"""Until an engine on GPUs is ready, where no record tells: weights read and kernels compiled; an assumption."""


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Tokens of a row on average. `prompt_tokens` include `image_tokens`."""

    prompt_tokens: Range
    image_tokens: float
    output_tokens: Range

    @property
    def as_expected(self) -> "RowLengths":
        """The same as if the expected lengths were certain."""
        prompt, output = (Range.exactly(r.expected) for r in (self.prompt_tokens, self.output_tokens))
        return RowLengths(prompt, self.image_tokens, output)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one engine for a row, and until it is ready, with what they are based on."""

    row_s: Range
    start_s: Range
    basis: str


def measured_speed(measured: Sequence[Measured], lengths: RowLengths | None) -> Speed | None:
    """By records: the first that tells a speed. Where rows are longer or shorter now than then, by how much: somewhere
    between the prompts' and the answers' ratio."""
    for record in measured:
        if record.rows_per_s is None:
            continue
        row_s = Range.exactly(1.0).over(record.rows_per_s) * SPREAD_OF_RECORDS
        ratios = [Range.exactly(1.0)]
        if lengths is not None and record.prompt_tokens and record.output_tokens:
            ratios = [
                lengths.prompt_tokens * (1 / record.prompt_tokens),
                lengths.output_tokens * (1 / record.output_tokens),
            ]
        expected = math.prod(r.expected for r in ratios) ** (1 / len(ratios))
        change = Range(min(r.low for r in ratios), expected, max(r.high for r in ratios))
        words = f"{record.rows:,} rows of {record.where}, {record.rows_per_s.expected:,.1f} rows/s an engine"
        return Speed(row_s * change, record.start_s or START_S, f"measured: {words}")
    return None


def estimated_speed(model: str, architecture: Architecture, fit: Fit, lengths: RowLengths, max_num_seqs: int) -> Speed:
    """By published figures where there are some of this profile and GPU, else by roofline. `model` is the profile's name."""
    gpus = fit.layout.num_gpus

    def roof(prompt: float, output: float) -> Roofline:
        batch = max(1.0, min(max_num_seqs, fit.concurrency(prompt + output)))
        return roofline(architecture, fit.gpu, gpus, fit.kv, batch=batch, request_tokens=prompt + output / 2)

    def vision_s(prompt: float, output: float) -> float:
        return lengths.image_tokens * roof(prompt, output).image_token_s

    def by_roof(prompt: float, output: float) -> float:
        found = roof(prompt, output)
        return prompt * found.input_token_s + output * found.output_token_s + vision_s(prompt, output)

    edges = ("low", "expected", "high")
    low, expected, high = ((getattr(lengths.prompt_tokens, e), getattr(lengths.output_tokens, e)) for e in edges)
    slow, fast = (published(model, fit.gpu.name, engine) for engine in ("vLLM", "TensorRT-LLM"))
    if not slow and not fast:
        row_s = Range(by_roof(*low), by_roof(*expected), by_roof(*high)) * SPREAD_OF_ROOFLINE
        words = (
            "no record and nothing published: a roofline, 35% of the GPUs' FLOPs in prefill and bandwidth in decoding"
        )
        return Speed(row_s, START_S, words)

    def by_priors(priors: Sequence[Prior], prompt: float, output: float) -> float:
        one_token = roof(prompt, output).input_token_s * gpus / NODE_GPUS
        node = node_request_s(priors, prompt, output, input_token_s=one_token)
        return node * NODE_GPUS / gpus + vision_s(prompt, output)

    def slowest(prompt: float, output: float) -> float:
        return by_priors(slow, prompt, output) if slow else by_priors(fast, prompt, output) * FULL_LOAD_GAIN

    def fastest(prompt: float, output: float) -> float:
        return by_priors(fast, prompt, output) if fast else by_priors(slow, prompt, output) / FULL_LOAD_GAIN

    middle = math.sqrt(slowest(*expected) * fastest(*expected))
    return Speed(Range(fastest(*low), middle, slowest(*high)), START_S, _told(slow, fast, fit))


def _told(slow: Sequence[Prior], fast: Sequence[Prior], fit: Fit) -> str:
    sources = [f"{priors[0].source} ({_load(priors[0])})" for priors in (slow, fast) if priors]
    scaled = f", scaled by GPUs from {NODE_GPUS} to {fit.layout.num_gpus}" if fit.layout.num_gpus != NODE_GPUS else ""
    only = "" if slow and fast else f"; the other end is taken {FULL_LOAD_GAIN:g} times apart, as Maverick's ends are"
    between = "between " if slow and fast else ""
    return f"{NODE_GPUS}x{fit.gpu.name}: {between}{' and '.join(sources)}{scaled}{only}; not measured here"


def _load(prior: Prior) -> str:
    return f"{prior.concurrency} requests at a time" if prior.concurrency else "full load"
