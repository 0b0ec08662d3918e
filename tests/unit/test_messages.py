import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import RowError, Stage
from pipeline.render.messages import ROLES, read_messages
from pipeline.request import Message, RequestImage

from .helpers import row_error

Parts = list[RequestImage]


def mark(name: Any) -> RequestImage:
    """Stands for a decoded image."""
    return RequestImage(None, str(name))  # type: ignore[arg-type]


def load(cell: Any) -> Parts:
    return [mark(cell)]


def failed(cell: Any) -> RowError:
    error = row_error(lambda: read_messages(cell, load))
    assert error.stage == Stage.RENDER
    return error


CHAT = [
    {"role": "system", "content": "be brief"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "one"},
            {"type": "image_url", "image_url": {"url": "https://x/a.png", "detail": "low"}},
            {"type": "image_url", "image_url": "https://x/b.png"},
            {"type": "text", "text": "two"},
        ],
    },
    {"role": "assistant", "content": "ok"},
]
READ = (
    Message("system", ("be brief",)),
    Message("user", ("one", mark("https://x/a.png"), mark("https://x/b.png"), "two")),
    Message("assistant", ("ok",)),
)


def test_messages_as_structs_are_read() -> None:
    assert read_messages(CHAT, load) == READ


def test_messages_as_json_are_read() -> None:
    assert read_messages(json.dumps(CHAT), load) == READ


@pytest.mark.parametrize("role", ROLES)
def test_messages_every_role_is_taken(role: str) -> None:
    assert read_messages([{"role": role, "content": "a"}], load) == (Message(role, ("a",)),)


def test_messages_nulls_that_arrow_adds_are_ignored() -> None:
    """Structs in a list share one type, so that each part has every key."""
    part = pa.struct([("type", pa.string()), ("text", pa.string()), ("image_url", pa.struct([("url", pa.string())]))])
    turns = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "one"},
                {"type": "image_url", "image_url": {"url": "https://x/a.png"}},
            ],
        }
    ]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(part)), ("name", pa.string())]))
    (cell,) = pa.array([turns], type=kind).to_pylist()
    assert cell[0]["content"][0]["image_url"] is None
    assert read_messages(cell, load) == (Message("user", ("one", mark("https://x/a.png"))),)


def test_messages_image_part_takes_any_cell() -> None:
    cell = {"bytes": b"x", "path": None}
    (message,) = read_messages([{"role": "user", "content": [{"type": "image", "image": cell}]}], load)
    assert message.parts == (mark(cell),)


def test_messages_image_part_may_give_several() -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": ["a", "b"]}]}]
    (message,) = read_messages(chat, lambda cell: [mark(c) for c in cell])
    assert message.parts == (mark("a"), mark("b"))


def test_messages_image_error_fails_the_row_as_it_says() -> None:
    def broken(cell: Any) -> Parts:
        raise RowError(Stage.IMAGE, "image_missing", "gone")

    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
    assert row_error(lambda: read_messages(chat, broken)).error_type == "image_missing"


def test_messages_null_chat_fails_the_row() -> None:
    error = failed(None)
    assert (error.error_type, error.message) == ("null_value", "the chat is null")


NO_LIST = "the chat is not a list of at least one message"
NO_ROLE = "message 0 has no role out of system, developer, user, assistant, tool"
NO_CONTENT = "message 0 has no content: a string, or a list of parts"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{", "the chat is not JSON: "),
        ("", "the chat is not JSON: "),
        ("[" * 100_000, "the chat is not JSON: "),
        ("[" + "9" * 5000 + "]", "the chat is not JSON: "),
        ("5", NO_LIST),
        ("null", NO_LIST),
        ("{}", NO_LIST),
        ([], NO_LIST),
        ({"role": "user"}, NO_LIST),
        (["hello"], NO_ROLE),
        ([None], NO_ROLE),
        ([{"content": "a"}], NO_ROLE),
        ([{"role": "wizard", "content": "a"}], NO_ROLE),
        ([{"role": ["user"], "content": "a"}], NO_ROLE),
        ([{"role": "user"}], NO_CONTENT),
        ([{"role": "user", "content": None}], NO_CONTENT),
        ([{"role": "user", "content": []}], NO_CONTENT),
        ([{"role": "user", "content": {"type": "text"}}], NO_CONTENT),
        ([{"role": "user", "content": 5}], NO_CONTENT),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_messages_malformed_fails_the_row_with_its_reason(cell: Any, message: str) -> None:
    error = failed(cell)
    assert error.error_type == "bad_messages"
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("text", "'?'"),
        (None, "'?'"),
        ({}, "None"),
        ({"type": "text"}, "'text'"),
        ({"type": "text", "text": None}, "'text'"),
        ({"type": "text", "text": 5}, "'text'"),
        ({"type": "image_url"}, "'image_url'"),
        ({"type": "image_url", "image_url": None}, "'image_url'"),
        ({"type": "image"}, "'image'"),
        ({"type": "audio", "audio": "x"}, "'audio'"),
        ({"text": "a"}, "None"),
    ],
    ids=repr,
)
def test_messages_malformed_part_fails_the_row_and_names_its_type(part: Any, kind: str) -> None:
    error = failed([{"role": "system", "content": "a"}, {"role": "user", "content": [part]}])
    assert error.error_type == "bad_messages"
    assert error.message == f"message 1 has a part of type {kind} that is neither text nor an image"
