"""Reads a chat in OpenAI's format from a cell: text parts and image parts, as structs or as JSON.

Accepted: `[{"role": ..., "content": "text"}]` and `content` as a list of `{"type": "text", "text": ...}` and
`{"type": "image_url", "image_url": {"url": ...}}` (or `image_url` as a plain string; `{"type": "image", "image": cell}`
takes any image cell). Keys whose value is null are ignored, as Arrow structs have every key.
"""

import json
from collections.abc import Callable
from typing import Any

from pipeline.errors import RowError, Stage
from pipeline.request import Message, RequestImage

ROLES = ("system", "developer", "user", "assistant", "tool")


def _wrong(message: str) -> RowError:
    return RowError(Stage.RENDER, "bad_messages", message)


def read_messages(cell: Any, load: Callable[[Any], list[RequestImage]]) -> tuple[Message, ...]:
    """The chat of one cell. `load` decodes an image cell.

    Raises:
        RowError: `null_value`, `bad_messages`, or what `load` says.
    """
    if cell is None:
        raise RowError(Stage.RENDER, "null_value", "the chat is null")
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError) as e:
            raise _wrong(f"the chat is not JSON: {e}") from None
    if not isinstance(cell, list) or not cell:
        raise _wrong("the chat is not a list of at least one message")
    return tuple(_message(turn, number, load) for number, turn in enumerate(cell))


def _message(turn: Any, number: int, load: Callable[[Any], list[RequestImage]]) -> Message:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        raise _wrong(f"message {number} has no role out of {', '.join(ROLES)}")
    content = turn.get("content")
    if isinstance(content, str):
        return Message(turn["role"], (content,))
    if not isinstance(content, list) or not content:
        raise _wrong(f"message {number} has no content: a string, or a list of parts")
    parts: list[str | RequestImage] = []
    for part in content:
        part = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {"type": "?"}
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "image_url" and "image_url" in part:
            url = part["image_url"]
            parts.extend(load(url.get("url") if isinstance(url, dict) else url))
        elif kind == "image" and "image" in part:
            parts.extend(load(part["image"]))
        else:
            raise _wrong(f"message {number} has a part of type {kind!r} that is neither text nor an image")
    return Message(turn["role"], tuple(parts))
