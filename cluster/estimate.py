"""What a job is expected to take: tokens, hours, GPU-hours and dollars, each with a range and what it is based on. Pure.

Ranges are carried along by their ends, as if all that is uncertain went the same way at once, so that they are wide rather
than wrong. What nobody can know here is None, with a sentence in `unknown`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cluster.prices import Price
from cluster.speed import RowLengths, Speed
from pipeline.spread import Range, Sampled, Spread, duplicates, rows_of, share, spread
from pipeline.survey import SampledRow, Survey

DUPLICATES = "rows less distinct requests by Chao and Lin (2012), from those sampled once and twice"


@dataclass(frozen=True, slots=True)
class OutputTokens:
    """Tokens of an answer, on average over rows."""

    per_row: Range
    basis: str
    is_upper_bound: bool = False


@dataclass(frozen=True)
class Data:
    """What a sample says of the rows of a job."""

    prompt_tokens: Spread | None
    """Of rows that are answered. Images included where they can be counted."""
    image_tokens: Spread | None
    over_long_rows: Range | None
    quarantined_rows: Range
    """Before an engine is asked; rows that are too long are among them."""
    quarantine_reasons: dict[str, dict[str, Any]]
    duplicate_rows: Range | None
    """Rows that get another row's answer; None where each row is asked by itself."""
    sample: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)


def data_of(survey: Survey, *, max_model_len: int | None, seed: int) -> Data:
    """The figures of a survey, for all rows of the job."""
    sampled, total = survey.sampled, survey.total_rows
    good, counted = survey.answerable, [row.tokens for row in survey.answerable if row.tokens is not None]
    refused = share([row.reason is not None for row in survey.rows], sampled)
    answered = Range(*(total * (1 - r) for r in (refused.high, refused.expected, refused.low)))
    # of a whole sample those that are left are all there are
    of_good = Sampled(len(good) if sampled.is_whole else total, [row.group for row in good])
    unknown = {}
    image_tokens = [tokens.image_tokens for tokens in counted if tokens.image_tokens is not None]
    if len(image_tokens) < len(counted):
        unknown["image_tokens"] = "tokens of images are known for Llama 4 only; each counts as one token of the prompt"
    images = None if "image_tokens" in unknown else spread(image_tokens, of_good, answered)
    prompts = spread([tokens.prompt_tokens for tokens in counted], of_good, answered)
    if max_model_len is None:
        unknown["over_long_rows"] = "the model's context limit is not known; set engine.max_model_len"
    keys = [row.key for row in good if row.key is not None]
    reasons = {
        reason: {
            "sampled": count,
            "rows": asdict(rows_of(share([row.reason == reason for row in survey.rows], sampled), total)),
            "example": survey.examples[reason],
        }
        for reason, count in survey.reasons.most_common()
    }
    return Data(
        prompt_tokens=_off_by(survey.error, prompts, images),
        image_tokens=images,
        over_long_rows=None
        if max_model_len is None
        else rows_of(share([row.is_over_long for row in survey.rows], sampled), total),
        quarantined_rows=rows_of(refused, total),
        quarantine_reasons=reasons,
        duplicate_rows=duplicates(keys, round(answered.expected * len(keys) / len(good))) if keys else None,
        sample={
            "rows": sampled.rows,
            "row_groups": survey.num_groups,
            "seed": seed,
            "is_whole": sampled.is_whole,
            "is_head": survey.is_head,
            "tokens_by": survey.basis,
            "token_error": asdict(survey.error),
            "duplicates_by": DUPLICATES,
        },
        unknown=unknown,
    )


def output_tokens(
    rows: Sequence[SampledRow],
    measured: tuple[float, str] | None,
    choice_tokens: Sequence[int],
    max_tokens: int | None,
) -> OutputTokens | None:
    """Tokens of an answer: by records (tokens a row, and where), else by the answers that `answer.choice` allows, else by
    the limit, which bounds them from above. None where nothing bounds them."""
    is_fixed = bool(choice_tokens) and len(set(choice_tokens)) == 1
    if measured is not None and not is_fixed:
        tokens, where = measured
        return OutputTokens(Range(0.8, 1.0, 1.25) * tokens, f"answers of {where}")
    limits = [row.max_tokens for row in rows if row.max_tokens is not None]
    if not limits:
        if max_tokens is None:
            return None
        limits = [max_tokens]
    limit = sum(limits) / len(limits)
    if choice_tokens:
        ends = [min(limit, n + 1) for n in choice_tokens]
        each = Range(min(ends), sum(ends) / len(ends), max(ends))
        return OutputTokens(each, "the choices' own tokens, and one to end them")
    return OutputTokens(Range(1.0, limit, limit), "max_tokens, which no answer goes beyond", is_upper_bound=True)


def _off_by(error: Range, prompt: Spread | None, images: Spread | None) -> Spread | None:
    """Prompt tokens whose text may be counted wrong by so much; those of images are exact where they are known."""
    if prompt is None:
        return None
    of_images = images.total if images else 0
    low, high = (
        of_images + max(0, t - of_images) * e
        for t, e in ((prompt.total_low, error.low), (prompt.total_high, error.high))
    )
    return replace(prompt, total_low=round(low), total_high=round(high))


def lengths_of(data: Data, output: OutputTokens | None) -> RowLengths | None:
    """Tokens of a row on average, with what sampling and counting may be off by; None where they are not known."""
    prompt, images = data.prompt_tokens, data.image_tokens
    if prompt is None or output is None:
        return None
    scale = prompt.mean / prompt.total if prompt.total else 0.0
    mean = Range(prompt.total_low * scale, prompt.mean, prompt.total_high * scale)
    return RowLengths(mean, images.mean if images else 0.0, output.per_row)


@dataclass(frozen=True)
class Cost:
    """Time and money of a whole job. None where there is no basis."""

    eta_s: Range
    """Engine start included."""
    gpu_hours: Range | None
    cost_usd: Range | None
    speed_basis: str
    price_basis: str | None


def cost(
    rows: int, data: Data | None, speed: Speed, *, engines: int, gpus_per_engine: int, price: Price | None
) -> Cost:
    """What `rows` rows take on so many engines. Rows that are quarantined before an engine sees them, and rows that get
    another's answer, are not asked; at the high end only those of them that the sample has shown are left out."""
    asked = Range.exactly(rows)
    if data is not None:
        spared = data.quarantined_rows
        if data.duplicate_rows is not None:
            d = data.duplicate_rows
            spared = spared + Range(d.low, d.expected, d.expected)
        asked = Range(*(max(0.0, rows - s) for s in (spared.high, spared.expected, spared.low)))
    eta = asked * speed.row_s * (1 / engines) + speed.start_s
    gpu_hours = eta * (engines * gpus_per_engine / 3600) if gpus_per_engine else None
    return Cost(
        eta.rounded(1),
        gpu_hours.rounded(3) if gpu_hours else None,
        (gpu_hours * price.usd).rounded(2) if gpu_hours and price else None,
        speed.basis,
        price.basis if price else None,
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast all engines go together, for rows of the expected lengths."""

    rows_per_s: Range
    tokens_per_s: dict[str, Range] | None
    """Of prompts and of answers; None where rows' lengths are not known."""

    @classmethod
    def of(cls, speed: Speed, lengths: RowLengths | None, engines: int) -> "Pace":
        """The pace of so many engines. `speed` is one for lengths without a range, see `RowLengths.as_expected`."""
        rows = Range.exactly(engines).over(speed.row_s)
        if lengths is None:
            return cls(rows.rounded(2), None)
        kinds = {"prompt": lengths.prompt_tokens, "output": lengths.output_tokens}
        return cls(rows.rounded(2), {kind: (rows * tokens.expected).rounded(1) for kind, tokens in kinds.items()})
