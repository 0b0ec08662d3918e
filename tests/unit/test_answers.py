import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers import answer_type, arrow_type, parser, to_arrow_value
from pipeline.config import AnswerConfig
from pipeline.errors import RowError, Stage

from .helpers import row_error

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def parsed(answer: dict[str, Any], text: str, finish_reason: str = "stop") -> Any:
    return parser(AnswerConfig.model_validate(answer))(text, finish_reason)


def failed(answer: dict[str, Any], text: str, finish_reason: str = "stop") -> RowError:
    error = row_error(lambda: parsed(answer, text, finish_reason))
    assert error.stage == Stage.ANSWER
    return error


@pytest.mark.parametrize("text", ["", " a b \n", "None"])
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_answer_text_is_what_was_said(text: str, reason: str) -> None:
    assert parsed({}, text, reason) == text


@pytest.mark.parametrize("text", ["yes", " yes", "yes\n"])
def test_answer_choice_is_taken_with_spaces_stripped(text: str) -> None:
    assert parsed({"choice": ["yes", "no"]}, text) == "yes"


def test_answer_choice_with_spaces_of_its_own_is_taken() -> None:
    assert parsed({"choice": [" yes", "no"]}, " yes") == " yes"


@pytest.mark.parametrize("text", ["", "Yes", "yes no", "maybe"])
def test_answer_not_a_choice_fails_the_row(text: str) -> None:
    error = failed({"choice": ["yes", "no"]}, text)
    assert (error.error_type, error.message) == ("not_a_choice", f"not one of the 2 choices: {text!r}")


def test_answer_regex_that_matches_is_taken() -> None:
    assert parsed({"regex": r"\d+"}, "42") == "42"


@pytest.mark.parametrize("text", ["42 ", "a42", "", "42\n"])
def test_answer_regex_must_match_as_a_whole(text: str) -> None:
    error = failed({"regex": r"\d+"}, text)
    assert (error.error_type, error.message) == ("no_match", f"does not match the regex: {text!r}")


def test_answer_long_text_is_cut_in_the_message() -> None:
    assert failed({"regex": "b"}, "a" * 500).message == f"does not match the regex: {'a' * 120 + '...'!r}"


def test_answer_json_that_is_valid_is_taken() -> None:
    assert parsed({"json_schema": SCHEMA}, ' {"name": "Ada", "age": 36}\n') == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("text", ["", "{", "Ada", '{"name": "Ada"} and more', "{'name': 'Ada'}"])
def test_answer_not_json_fails_the_row(text: str) -> None:
    error = failed({"json_schema": SCHEMA}, text)
    assert error.error_type == "not_json"
    assert repr(text) in error.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"age": 1}', "at $: 'name' is a required property"),
        ('{"name": 5}', "at $.name: 5 is not of type 'string'"),
        ('{"name": "a", "age": -1}', "at $.age: -1 is less than the minimum of 0"),
        ('{"name": "a", "b": 1}', "at $: Additional properties are not allowed ('b' was unexpected)"),
        ("[]", "at $: [] is not of type 'object'"),
    ],
)
def test_answer_against_its_schema_fails_the_row(text: str, message: str) -> None:
    error = failed({"json_schema": SCHEMA}, text)
    assert (error.error_type, error.message) == ("schema_violation", message)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_answer_number_that_json_does_not_have_refused(name: str) -> None:
    error = failed({"json_schema": {"type": "number"}}, name)
    assert error.error_type == "not_json"
    assert error.message.startswith(f"{name} is not JSON")


def test_answer_number_beyond_a_float_refused() -> None:
    """`1e999` reads as infinity, which no JSON text could hold again."""
    failed({"json_schema": {"type": "number"}}, "1e999")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000], ids=["deep", "long_number"])
def test_answer_that_breaks_the_json_reader_fails_the_row(text: str) -> None:
    assert failed({"json_schema": {"type": "array"}}, text).error_type == "not_json"


def test_answer_nested_too_deep_for_the_validator_fails_the_row() -> None:
    failed({"json_schema": {"type": "array", "items": {"$ref": "#"}}}, "[" * 400 + "]" * 400)


def test_answer_schema_with_a_dangling_reference_does_not_end_the_run() -> None:
    """It is either refused with the job or fails each row; no other error may come out of the parser."""
    try:
        parse = parser(AnswerConfig.model_validate({"json_schema": {"$ref": "#/$defs/none"}}))
    except ValueError:
        return
    assert row_error(lambda: parse("{}", "stop")).stage == Stage.ANSWER


@pytest.mark.parametrize(
    ("answer", "text"), [({"choice": ["yes"]}, "ye"), ({"regex": "a{5}"}, "aaa"), ({"json_schema": SCHEMA}, '{"name')]
)
def test_answer_cut_by_max_tokens_fails_the_row_as_cut(answer: dict[str, Any], text: str) -> None:
    error = failed(answer, text, "length")
    assert (error.error_type, error.message) == ("answer_cut", f"cut by max_tokens before it was whole: {text!r}")


@pytest.mark.parametrize(
    ("answer", "text"), [({"choice": ["yes"]}, "yes"), ({"regex": "a+"}, "aa"), ({"json_schema": {}}, "{}")]
)
def test_answer_whole_at_max_tokens_is_taken(answer: dict[str, Any], text: str) -> None:
    parsed(answer, text, "length")


STRING, INT, FLOAT, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, STRING),
        ({"type": "integer"}, INT),
        ({"type": "number"}, FLOAT),
        ({"type": "boolean"}, BOOL),
        ({"type": ["integer", "null"]}, INT),
        ({"type": ["integer", "string"]}, None),
        ({"type": "null"}, None),
        ({"enum": ["a", "b"]}, STRING),
        ({"enum": ["a", None]}, STRING),
        ({"enum": [1, 2]}, INT),
        ({"enum": [1, 2.5]}, FLOAT),
        ({"enum": [True, False]}, BOOL),
        ({"enum": [1, True]}, None),
        ({"enum": ["a", 1]}, None),
        ({"enum": [None]}, None),
        ({"enum": [[1], {"a": 1}]}, None),
        ({"const": "a"}, STRING),
        ({"const": None}, None),
        ({"type": "array", "items": {"type": "number"}}, pa.list_(FLOAT)),
        ({"type": "array"}, None),
        ({"type": "array", "items": True}, None),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, None),
        ({"type": "object", "properties": {"a": {"type": "string"}}}, pa.struct([("a", STRING)])),
        ({"properties": {"a": {"type": "string"}}, "type": ["object", "null"]}, pa.struct([("a", STRING)])),
        ({"type": "object", "properties": {"a": {}}}, None),
        ({"type": "object"}, None),
        ({"type": "object", "properties": {}}, None),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}, None),
        ({"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"b": {}}}, None),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, None),
        ({"$ref": "#/$defs/a"}, None),
        ({}, None),
        (True, None),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "array", "items": {"type": "object", "properties": {"b": {"const": 1}}}}},
            },
            pa.struct([("a", pa.list_(pa.struct([("b", INT)])))]),
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_arrow_type_of_schema(schema: Any, expected: pa.DataType | None) -> None:
    assert arrow_type(schema) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, STRING),
        ({"choice": ["1", "2"]}, STRING),
        ({"regex": "a"}, STRING),
        ({"json_schema": {}}, STRING),
        ({"json_schema": {"type": "integer"}}, INT),
    ],
)
def test_answer_type_of_shape(answer: dict[str, Any], expected: pa.DataType) -> None:
    assert answer_type(AnswerConfig.model_validate(answer)) == expected


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30])
@pytest.mark.parametrize("nested", [False, True])
def test_arrow_value_integer_beyond_64_bits_fails_the_row(value: int, nested: bool) -> None:
    kind, document = (pa.struct([("a", INT)]), {"a": value}) if nested else (INT, value)
    error = row_error(lambda: to_arrow_value(document, kind))
    assert (error.stage, error.error_type) == (Stage.ANSWER, "answer_out_of_range")
    assert error.message.startswith(f"does not fit {kind}: ")


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63)])
def test_arrow_value_integer_of_64_bits_is_kept(value: int) -> None:
    assert pa.array([to_arrow_value(value, INT)], INT).to_pylist() == [value]


def test_arrow_value_whole_float_counts_as_integer() -> None:
    """JSON Schema takes 3.0 for an integer."""
    assert parsed({"json_schema": {"type": "integer"}}, "3.0") == 3
    assert pa.array([to_arrow_value(3.0, INT)], INT).to_pylist() == [3]


def test_arrow_value_unlisted_members_are_left_out_and_absent_ones_null() -> None:
    kind = pa.struct([("a", STRING), ("b", INT)])
    assert pa.array([to_arrow_value({"a": "x", "c": 1}, kind)], kind).to_pylist() == [{"a": "x", "b": None}]


@pytest.mark.parametrize("value", [{"a": ["ü", None]}, [1], 5, "5", True])
def test_arrow_value_without_a_type_is_json_text(value: Any) -> None:
    text = to_arrow_value(value, STRING, as_json=True)
    assert json.loads(text) == value
    assert "\\u" not in text


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {}])
def test_arrow_value_with_a_lone_surrogate_can_be_written_or_fails_its_row(schema: dict[str, Any]) -> None:
    r"""A model may well say "\ud800" in JSON; no column can hold that, and one row must not end the shard."""
    text = '["\\ud800"]' if schema != {"type": "string"} else '"\\ud800"'
    config = AnswerConfig.model_validate({"json_schema": schema})
    kind = answer_type(config)
    try:
        value = to_arrow_value(parser(config)(text, "stop"), kind)
    except RowError as e:
        assert e.stage == Stage.ANSWER
        return
    pa.array([value], kind)


def schemas_with_documents() -> st.SearchStrategy[tuple[dict[str, Any], Any]]:
    """A schema that has an Arrow type, and a document that is valid under it."""
    leaves = st.one_of(
        st.tuples(st.just({"type": "string"}), st.text()),
        st.tuples(st.just({"type": "integer"}), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just({"type": "number"}), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just({"type": "boolean"}), st.booleans()),
        st.tuples(st.just({"enum": ["a", "b"]}), st.sampled_from(["a", "b"])),
        st.tuples(st.just({"type": ["string", "null"]}), st.none() | st.text()),
    )

    def grow(
        inner: st.SearchStrategy[tuple[dict[str, Any], Any]],
    ) -> st.SearchStrategy[tuple[dict[str, Any], Any]]:
        names = st.text("abcxyz", min_size=1, max_size=4)
        members = st.dictionaries(names, inner, min_size=1, max_size=4)
        objects = members.map(
            lambda m: (
                {"type": "object", "properties": {k: s for k, (s, _) in m.items()}, "required": list(m)},
                {k: d for k, (_, d) in m.items()},
            )
        )
        arrays = st.tuples(inner, st.integers(0, 3)).map(
            lambda pair: ({"type": "array", "items": pair[0][0]}, [pair[0][1]] * pair[1])
        )
        return objects | arrays

    return st.recursive(leaves, grow, max_leaves=6)


@given(schemas_with_documents())
def test_arrow_value_of_any_valid_document_round_trips(pair: tuple[dict[str, Any], Any]) -> None:
    schema, document = pair
    config = AnswerConfig.model_validate({"json_schema": schema})
    value = parser(config)(json.dumps(document), "stop")
    kind = answer_type(config)
    assert kind == arrow_type(schema)
    assert pa.array([to_arrow_value(value, kind)], kind).to_pylist() == [document]
