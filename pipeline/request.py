"""What passes between rendering, engines and answers: declared, immutable, and free of any engine's types.

What is made for every row is a named tuple: made, and passed between processes, in a third of the time of a frozen data
class.
"""

import hashlib
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from PIL import Image

from pipeline.errors import RowError, Stage


@dataclass(frozen=True, slots=True)
class RequestImage:
    """A decoded image in RGB, and the SHA-256 of its encoded bytes as they were read."""

    pixels: Image.Image
    sha256: str


class Message(NamedTuple):
    """A turn of a chat: its role, and texts and images in order."""

    role: str
    parts: tuple[str | RequestImage, ...]


class Sampling:
    """Effective sampling parameters under vLLM's names; most rows of a run share one object."""

    __slots__ = ("canonical", "is_repeatable", "sha256", "values")

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.canonical = json.dumps(values, sort_keys=True, default=str)
        self.sha256 = hashlib.sha256(self.canonical.encode()).hexdigest()
        self.is_repeatable = values.get("temperature") == 0 or values.get("seed") is not None
        """Whether an answer does not depend on chance: greedy, or with a seed of its own."""


class Request(NamedTuple):
    """One row, ready to be asked."""

    messages: tuple[Message, ...]
    sampling: Sampling

    @property
    def images(self) -> list[RequestImage]:
        return [part for message in self.messages for part in message.parts if isinstance(part, RequestImage)]

    @property
    def text(self) -> str:
        """All text of the chat, turns and parts joined by newlines; what an engine without a model sees."""
        return "\n".join(part for message in self.messages for part in message.parts if isinstance(part, str))

    @property
    def key(self) -> str:
        """SHA-256 of all that is the request's own: roles, texts, images by content, sampling. Under one model and one
        shape of answer, equal keys make equal tokens."""
        digest = hashlib.sha256(self.sampling.canonical.encode())
        for message in self.messages:
            digest.update(f"\0role {message.role}".encode())
            for part in message.parts:
                text = f"\0text {len(part)} {part}" if isinstance(part, str) else f"\0image {part.sha256}"
                digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class Prepared(NamedTuple):
    """A request in an engine's own form. `prompt_token_ids` are as the model sees them, images expanded."""

    prompt_token_ids: Sequence[int]
    request_sha256: str
    payload: Any


class Completion(NamedTuple):
    """An engine's answer. `finish_reason` is vLLM's: `stop`, `length`, ... `text` is None until it is detokenised."""

    text: str | None
    token_ids: Sequence[int]
    finish_reason: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that will not be answered, as `pipeline.errors.RowError` said."""

    stage: Stage
    error_type: str
    message: str

    @classmethod
    def of(cls, error: RowError) -> "Failure":
        return cls(error.stage, error.error_type, error.message)


class Outcome(NamedTuple):
    """How one row ended, with the digests of what was asked (none when it failed before it could be asked), the run that
    asked it, where that was done for another row, and the request's key, where its answer does not depend on chance."""

    result: Completion | Failure
    request_sha256: str | None = None
    sampling_sha256: str | None = None
    cached_from: str | None = None
    key: str | None = None


def request_sha256(token_ids: Sequence[int], images: Sequence[RequestImage], shape: str) -> str:
    """SHA-256 over the token ids (64 bits each, little-endian), the images' content digests, and `shape`: sampling and
    answer."""
    ids = array("q", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    digest = hashlib.sha256(ids.tobytes())
    for image in images:
        digest.update(image.sha256.encode())
    digest.update(shape.encode())
    return digest.hexdigest()
