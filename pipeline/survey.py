"""Looks at sampled rows as a run would: the run's own rendering, then tokens counted instead of an engine asked.

A row that a run would quarantine before its engine sees it is found here with the same stage and type. Images are fetched,
decoded and dropped again: their sizes are all that is kept.
"""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.columns import Columns
from pipeline.config import RunConfig
from pipeline.errors import RowError, Stage
from pipeline.render.rows import Renderer
from pipeline.request import Request
from pipeline.sample import Slice, read
from pipeline.spread import Range, Sampled

THREADS = 8


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens of one request as the model sees it. None: this kind of image is one that nobody here can count."""

    prompt_tokens: int
    image_tokens: int | None
    """Those of the prompt's that stand for images."""


class TokenCounter(Protocol):
    """Counts what an engine would be asked."""

    basis: str
    """How it counts, in words for a person."""
    error: Range
    """What a count of text may be off by, as factors; 1, 1, 1 where it is exact."""

    def count(self, request: Request) -> Counted:
        """The request's tokens. Called from several threads.

        Raises:
            RowError: the model's chat template refuses the request.
        """

    def text_tokens(self, text: str) -> int:
        """Tokens of a text by itself, such as an answer."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """What was found of one row. `reason` is `stage/error_type` where it would be quarantined, and then nothing else is
    known but for a prompt that is too long."""

    group: int
    """Of the sampled row groups, the one it is from."""
    reason: str | None = None
    message: str | None = None
    tokens: Counted | None = None
    images: int = 0
    max_tokens: int | None = None
    """Output tokens that the row may have: by its sampling parameters, and by what the context leaves."""
    key: str | None = None
    """The request's key where identical requests are answered once."""

    @property
    def is_over_long(self) -> bool:
        return self.reason == OVER_LONG


OVER_LONG = f"{Stage.RENDER}/prompt_too_long"


@dataclass(frozen=True)
class Survey:
    """Sampled rows of a job's `total_rows`, in plan order, and how their tokens were counted."""

    rows: Sequence[SampledRow]
    total_rows: int
    num_groups: int
    basis: str
    error: Range
    is_head: bool = False
    """Whether some row groups were so heavy that only their first rows were gone through."""
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """Of each reason the message of the first row that has it."""

    @property
    def sampled(self) -> Sampled:
        return Sampled(self.total_rows, [row.group for row in self.rows])

    @property
    def answerable(self) -> list[SampledRow]:
        """The rows that an engine would be asked."""
        return [row for row in self.rows if row.reason is None]


def survey(
    config: RunConfig,
    columns: Columns,
    slices: Sequence[Slice],
    counter: TokenCounter,
    *,
    total_rows: int,
    max_model_len: int | None,
    max_images: int | None,
) -> Survey:
    """What the rows of these slices come to. A prompt of `max_model_len` tokens or more is too long, as in a run; so are
    `max_images` exceeded.

    Raises:
        ConfigError: a template does not parse, or a row group cannot be decoded.
        StorageError: an input file is out of reach.
    """
    renderer = Renderer(config)
    shares = config.cache.in_run or config.cache.uri is not None

    def look(request: Request) -> tuple[Counted, int | None]:
        if max_images is not None and len(request.images) > max_images:
            raise RowError(
                Stage.RENDER, "request_refused", f"{len(request.images)} images, and a prompt may have {max_images}"
            )
        tokens = counter.count(request)
        most = request.sampling.values.get("max_tokens")
        if max_model_len is None:
            return tokens, most
        left = max_model_len - tokens.prompt_tokens
        return tokens, left if most is None else min(most, left)

    def one(group: int, row: dict[str, object]) -> SampledRow:
        try:
            request = renderer.render(row)
            tokens, most = look(request)
        except RowError as e:
            return SampledRow(group, f"{e.stage}/{e.error_type}", e.message)
        except Exception as e:  # as a run does with a row that makes our code fail
            return SampledRow(group, f"{Stage.RENDER}/unexpected", f"{type(e).__name__}: {e}")
        key = request.key if shares and request.sampling.is_repeatable else None
        if max_model_len is not None and tokens.prompt_tokens >= max_model_len:
            said = f"the prompt has {tokens.prompt_tokens} tokens and the context holds {max_model_len}"
            return SampledRow(group, OVER_LONG, said, tokens)
        return SampledRow(group, tokens=tokens, images=len(request.images), max_tokens=most, key=key)

    def rows(numbered: tuple[int, Slice]) -> list[SampledRow]:
        group, piece = numbered
        return [one(group, row) for row in read(piece, columns.rendered, config.input.storage)]

    with ThreadPoolExecutor(THREADS, thread_name_prefix="herd-survey") as pool:
        found = [row for part in pool.map(rows, enumerate(slices)) for row in part]
    examples: dict[str, str] = {}
    for row in found:
        if row.reason is not None:
            examples.setdefault(row.reason, str(row.message))
    return Survey(
        found,
        total_rows,
        len(slices),
        counter.basis,
        counter.error,
        any(piece.is_head for piece in slices),
        Counter(row.reason for row in found if row.reason is not None),
        examples,
    )
