"""What passes between rendering, engines and answers: declared, immutable, and free of any engine's types."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from pipeline.errors import RowError, Stage


@dataclass(frozen=True, slots=True)
class RequestImage:
    """A decoded image in RGB, and the SHA-256 of its encoded bytes as they were read."""

    pixels: Image.Image
    sha256: str


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a chat: its role, and texts and images in order."""

    role: str
    parts: tuple[str | RequestImage, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One row, ready to be asked. `sampling` holds the effective parameters under vLLM's names."""

    messages: tuple[Message, ...]
    sampling: dict[str, Any]

    @property
    def images(self) -> list[RequestImage]:
        return [part for message in self.messages for part in message.parts if isinstance(part, RequestImage)]

    @property
    def text(self) -> str:
        """All text of the chat, turns and parts joined by newlines; what an engine without a model sees."""
        return "\n".join(part for message in self.messages for part in message.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request in an engine's own form. `prompt_token_ids` are as the model sees them, images expanded."""

    prompt_token_ids: Sequence[int]
    request_sha256: str
    payload: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Completion:
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one row ended, with the hash of what was asked (none when it failed before it could be asked)."""

    result: Completion | Failure
    request_sha256: str | None
    sampling: dict[str, Any] | None


def canonical_sha256(value: Any) -> str:
    """SHA-256 of plain data as canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def request_sha256(token_ids: Sequence[int], images: Sequence[RequestImage], shape: str) -> str:
    """SHA-256 over the token ids (as JSON), the images' content digests, and `shape`: sampling and answer."""
    digest = hashlib.sha256(json.dumps(list(token_ids), separators=(",", ":")).encode())
    for image in images:
        digest.update(image.sha256.encode())
    digest.update(shape.encode())
    return digest.hexdigest()
