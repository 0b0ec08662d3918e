from typing import Any

import pyarrow as pa
import pytest

from pipeline.columns import OUTPUT_COLUMNS, Columns, is_image_type, resolve
from pipeline.errors import ConfigError

from .helpers import job

CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("chat", CHAT),
        ("settings", pa.struct([("temperature", pa.float64())])),
        ("label", pa.string()),
    ]
)


def resolved(schema: pa.Schema = SCHEMA, **changes: Any) -> Columns:
    return resolve(job(**changes), schema, where="in.parquet")


def refused(schema: pa.Schema = SCHEMA, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(schema, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "key", "column", "near"),
    [
        ({"prompt": {"user": "{{ txt }}"}}, "prompt.user", "txt", "text"),
        ({"prompt": {"user": "a", "system": "{{ lable }}"}}, "prompt.system", "lable", "label"),
        ({"prompt": {"messages": "chats"}}, "prompt.messages", "chats", "chat"),
        ({"input": {"uri": "a", "images": "imgae"}}, "input.images", "imgae", "image"),
        ({"input": {"uri": "a", "sampling": "setting"}}, "input.sampling", "setting", "settings"),
        ({"input": {"uri": "a", "carry": ["textt"]}}, "input.carry", "textt", "text"),
        ({"evaluate": {"gold": "labl"}}, "evaluate", "labl", "label"),
        ({"evaluate": {"gold": "label", "by": "ids"}}, "evaluate", "ids", "id"),
    ],
)
def test_columns_missing_names_key_nearest_file_and_all(
    changes: dict[str, Any], key: str, column: str, near: str
) -> None:
    message = refused(**changes)
    assert f"`{key}` needs column `{column}`, which the input does not have. Did you mean `{near}`?" in message
    assert "in.parquet" in message
    assert "Its columns: id, text, image, chat, settings, label." in message


def test_columns_image_of_wrong_type_refused() -> None:
    message = refused(input={"uri": "a", "images": "id"})
    assert "Column `id` is int64, which cannot hold images (in.parquet)" in message
    assert "It must be bytes, {bytes, path}, a URI string, or a list of these." in message


@pytest.mark.parametrize(
    ("kind", "ok"),
    [
        (pa.binary(), True),
        (pa.large_binary(), True),
        (pa.string(), True),
        (pa.large_string(), True),
        (pa.dictionary(pa.int32(), pa.string()), True),
        (pa.struct([("bytes", pa.binary())]), True),
        (pa.struct([("path", pa.string())]), True),
        (pa.list_(pa.binary()), True),
        (pa.large_list(pa.string()), True),
        (pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])), True),
        (pa.int64(), False),
        (pa.struct([("x", pa.binary())]), False),
        (pa.list_(pa.float32()), False),
        (pa.list_(pa.list_(pa.binary())), False),
        (pa.null(), False),
    ],
)
def test_columns_image_type_told_from_others(kind: pa.DataType, ok: bool) -> None:
    assert is_image_type(kind) is ok


@pytest.mark.parametrize("column", ["id", "settings", "image"])
def test_columns_messages_of_wrong_type_refused(column: str) -> None:
    message = refused(prompt={"messages": column})
    assert f"Column `{column}` is " in message
    assert "which cannot hold chat messages" in message
    assert "It must be a list of structs, or a JSON string." in message


@pytest.mark.parametrize("column", ["chat", "text"])
def test_columns_messages_as_structs_or_json_accepted(column: str) -> None:
    assert resolved(prompt={"messages": column}).messages == column


@pytest.mark.parametrize("column", ["id", "chat"])
def test_columns_sampling_of_wrong_type_refused(column: str) -> None:
    message = refused(input={"uri": "a", "sampling": column})
    assert "which cannot hold sampling" in message
    assert "It must be a struct, or a JSON string." in message


@pytest.mark.parametrize("column", ["settings", "text"])
def test_columns_sampling_as_struct_or_json_accepted(column: str) -> None:
    assert resolved(input={"uri": "a", "sampling": column}).sampling == column


def test_columns_carry_default_is_all_but_images() -> None:
    columns = resolved(input={"uri": "a", "images": "image"})
    assert columns.carry == ("id", "text", "chat", "settings", "label")
    assert columns.images == ("image",)


def test_columns_carry_default_leaves_messages_out() -> None:
    assert "chat" not in resolved(prompt={"messages": "chat"}).carry


def test_columns_carry_explicit_is_taken_once_each() -> None:
    columns = resolved(input={"uri": "a", "carry": ["label", "id", "label"]})
    assert columns.carry == ("label", "id")
    assert columns.read == ["label", "id", "text"]


def test_columns_read_has_each_once_and_all_that_are_used() -> None:
    columns = resolved(
        input={"uri": "a", "carry": ["id"], "images": "image", "sampling": "settings"},
        prompt={"user": "{{ text }} {{ id }}", "system": "{{ label }}"},
    )
    assert columns.read == ["id", "image", "label", "text", "settings"]


@pytest.mark.parametrize("name", OUTPUT_COLUMNS)
def test_columns_named_as_an_output_column_refused_when_carried(name: str) -> None:
    schema = SCHEMA.append(pa.field(name, pa.string()))
    message = refused(schema)
    assert f"Column `{name}` of the input has the name of an output column" in message
    assert "Leave it out with `input.carry`, or rename it." in message


def test_columns_named_as_an_output_column_may_be_used_without_carrying() -> None:
    schema = SCHEMA.append(pa.field("response", pa.string()))
    columns = resolved(schema, input={"uri": "a", "carry": ["id"]}, prompt={"user": "{{ response }}"})
    assert columns.template == ("response",)


def test_columns_row_variable_reads_every_column_but_images() -> None:
    columns = resolved(input={"uri": "a", "carry": [], "images": "image"}, prompt={"user": "{{ row.text }}"})
    assert columns.template == ("id", "text", "chat", "settings", "label")
    assert "row" not in columns.read


def test_columns_loop_variable_is_not_a_column() -> None:
    columns = resolved(prompt={"user": "{% for turn in chat %}{{ turn.content }}{% endfor %}"})
    assert columns.template == ("chat",)


def test_columns_template_that_does_not_parse_refused() -> None:
    assert "The template does not parse" in refused(prompt={"user": "{{ text"})
