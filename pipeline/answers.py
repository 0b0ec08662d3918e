"""From a response's text to an answer of the job's shape, checked again whatever the engine promised. Pure."""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import pyarrow as pa

from pipeline.config import AnswerConfig
from pipeline.errors import RowError, Stage


def parser(config: AnswerConfig) -> Callable[[str, str], Any]:
    """A function from (text, finish_reason) to the answer: a string, or for `json_schema` the parsed document.

    The function raises `RowError` of stage `answer`: `answer_cut` when the response ran into `max_tokens` before it was
    whole, else `not_a_choice`, `no_match`, `not_json`, `schema_violation`.
    """
    check = _checker(config)

    def parse(text: str, finish_reason: str) -> Any:
        try:
            return check(text)
        except RowError as e:
            if finish_reason == "length":
                raise RowError(
                    Stage.ANSWER, "answer_cut", f"cut by max_tokens before it was whole: {_shown(text)}"
                ) from None
            raise e

    return parse


def _checker(config: AnswerConfig) -> Callable[[str], Any]:
    if config.choice is not None:
        choices = set(config.choice)

        def choose(text: str) -> str:
            for candidate in (text, text.strip()):
                if candidate in choices:
                    return candidate
            raise RowError(Stage.ANSWER, "not_a_choice", f"not one of the {len(choices)} choices: {_shown(text)}")

        return choose
    if config.regex is not None:
        pattern = re.compile(config.regex)

        def match(text: str) -> str:
            if pattern.fullmatch(text) is None:
                raise RowError(Stage.ANSWER, "no_match", f"does not match the regex: {_shown(text)}")
            return text

        return match
    if config.json_schema is not None:
        schema = config.json_schema
        validator = jsonschema.validators.validator_for(schema)(schema)

        def document(text: str) -> Any:
            try:
                value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
            except (ValueError, RecursionError) as e:
                raise RowError(Stage.ANSWER, "not_json", f"{e}: {_shown(text)}") from None
            try:
                error = next(iter(validator.iter_errors(value)), None)
            except Exception as e:  # a schema's own fault that only a document brings out: a reference to nowhere
                raise RowError(Stage.ANSWER, "schema_violation", f"{type(e).__name__}: {e}"[:500]) from None
            if error is not None:
                raise RowError(Stage.ANSWER, "schema_violation", f"at {error.json_path}: {error.message}"[:500])
            return value

        return document
    return lambda text: text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is beyond a float")
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:120] + "...")


def answer_type(config: AnswerConfig) -> pa.DataType:
    """The Arrow type of the `answer` column: string, or for a JSON schema the type that `arrow_type` finds for it."""
    found = arrow_type(config.json_schema) if config.json_schema is not None else None
    return found if found is not None else pa.string()


def is_json_text(config: AnswerConfig) -> bool:
    """Whether the `answer` column holds JSON documents as text, for want of an Arrow type."""
    return config.json_schema is not None and arrow_type(config.json_schema) is None


def arrow_type(schema: Any) -> pa.DataType | None:
    """The Arrow type that holds every document of a schema, or None where there is none and JSON text must serve.

    Objects become structs of their listed properties (absent ones null; members that are not listed stay in `response`
    alone), arrays lists, enums the type of their values.
    """
    if not isinstance(schema, dict) or {"anyOf", "oneOf", "allOf", "$ref", "patternProperties", "not"} & schema.keys():
        return None
    if "const" in schema:
        return _type_of_values([schema["const"]])
    if "enum" in schema:
        return _type_of_values(schema["enum"])
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        solid = [k for k in kind if k != "null"]
        kind = solid[0] if len(solid) == 1 else None
    match kind:
        case "string":
            return pa.string()
        case "integer":
            return pa.int64()
        case "number":
            return pa.float64()
        case "boolean":
            return pa.bool_()
        case "array":
            item = None if "prefixItems" in schema else arrow_type(schema.get("items"))
            return None if item is None else pa.list_(item)
        case "object":
            members = {k: arrow_type(s) for k, s in schema.get("properties", {}).items()}
            extra = isinstance(schema.get("additionalProperties"), dict) or schema.get("additionalProperties") is True
            if not members or extra or None in members.values():
                return None
            return pa.struct(list(members.items()))
    return None


def _type_of_values(values: Sequence[Any]) -> pa.DataType | None:
    kinds = {type(v) for v in values if v is not None}
    if kinds == {str}:
        return pa.string()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else None


def fit(values: Sequence[Any], kind: pa.DataType) -> bool:
    """Whether a column of this type can hold all of these answers."""
    try:
        pa.array(values, type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
        return False
    return True


def to_arrow_value(value: Any, kind: pa.DataType, *, as_json: bool = False) -> Any:
    """The answer as `pa.array(..., kind)` takes it; with `as_json`, the document's JSON text.

    Raises:
        RowError: `answer_out_of_range` for what the type cannot hold, such as an integer beyond 64 bits.
    """
    if as_json:
        value = json.dumps(value, ensure_ascii=False)
    try:
        pa.array([value], type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError) as e:
        raise RowError(Stage.ANSWER, "answer_out_of_range", f"does not fit {kind}: {e}") from None
    return value
