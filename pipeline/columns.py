"""Which input columns a job needs, and whether the input has them with types that make sense. Pure."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from pipeline.config import RunConfig
from pipeline.config_errors import nearest
from pipeline.errors import ConfigError
from pipeline.render.template import ROW_VARIABLE, Template

OUTPUT_COLUMNS = (
    "response",
    "answer",
    "finish_reason",
    "prompt_tokens",
    "output_tokens",
    "lineage",
    "stage",
    "error_type",
    "message",
    "attempts",
)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a run touches, by what they are for."""

    carry: tuple[str, ...]
    images: tuple[str, ...]
    template: tuple[str, ...]
    messages: str | None
    sampling: str | None
    may_fetch: bool = False
    """Whether images may have to be fetched by URI: a string column, or chats."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Columns":
        """The columns as `dataclasses.asdict` gave them and JSON kept them."""
        carry, images, template = (tuple(data[k]) for k in ("carry", "images", "template"))
        return cls(carry, images, template, data["messages"], data["sampling"], data["may_fetch"])

    @property
    def read(self) -> list[str]:
        """Every column that is read, once each."""
        return list(dict.fromkeys([*self.carry, *self.rendered]))

    @property
    def rendered(self) -> list[str]:
        """The columns that a request is made from, once each."""
        extra = [c for c in (self.messages, self.sampling) if c]
        return list(dict.fromkeys([*self.images, *self.template, *extra]))


def resolve(config: RunConfig, schema: pa.Schema, *, where: str) -> Columns:
    """The job's columns in an input of this schema.

    Raises:
        ConfigError: a column that is missing (with the nearest one), of a type that cannot serve, or carried under a
            name that the output needs. `where` names the file that the schema comes from.
    """
    names = schema.names

    def need(column: str, key: str) -> pa.DataType:
        if column not in names:
            raise ConfigError(
                f"`{key}` needs column `{column}`, which the input does not have.{nearest(column, names)}",
                where=where,
                todo=f"Its columns: {', '.join(names)}.",
            )
        return schema.field(column).type

    for column in config.input.images:
        _check(
            is_image_type(need(column, "input.images")),
            column,
            schema,
            "images",
            "bytes, {bytes, path}, a URI string, or a list of these",
            where,
        )
    messages, sampling = config.prompt.messages, config.input.sampling
    if messages:
        kind = need(messages, "prompt.messages")
        ok = is_string(kind) or (is_list(kind) and pt.is_struct(kind.value_type))
        _check(ok, messages, schema, "chat messages", "a list of structs, or a JSON string", where)
    if sampling:
        kind = need(sampling, "input.sampling")
        _check(is_string(kind) or pt.is_struct(kind), sampling, schema, "sampling", "a struct, or a JSON string", where)

    template: dict[str, None] = {}
    for key, text in (("prompt.system", config.prompt.system), ("prompt.user", config.prompt.user)):
        if text is not None:
            parsed = Template(text, key)
            wanted = names if parsed.uses_whole_row else parsed.variables
            for variable in wanted:
                need(variable, key)
                if variable not in config.input.images:
                    template[variable] = None
    if config.input.carry is not None:
        carry = list(dict.fromkeys(config.input.carry))
        for column in carry:
            need(column, "input.carry")
    else:
        carry = [c for c in names if c not in config.input.images and c != messages]
    taken = [c for c in carry if c in OUTPUT_COLUMNS]
    if taken:
        raise ConfigError(
            f"Column `{taken[0]}` of the input has the name of an output column",
            where=where,
            todo="Leave it out with `input.carry`, or rename it.",
        )
    if config.evaluate:
        for column in filter(None, (config.evaluate.gold, config.evaluate.by)):
            need(column, "evaluate")
    may_fetch = messages is not None or any(is_uri_type(schema.field(c).type) for c in config.input.images)
    return Columns(tuple(carry), tuple(config.input.images), tuple(template), messages, sampling, may_fetch)


def _check(ok: bool, column: str, schema: pa.Schema, use: str, wanted: str, where: str) -> None:
    if not ok:
        raise ConfigError(
            f"Column `{column}` is {schema.field(column).type}, which cannot hold {use}",
            where=where,
            todo=f"It must be {wanted}.",
        )


def is_string(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return bool(pt.is_string(kind) or pt.is_large_string(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def is_uri_type(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings, or lists of them."""
    return is_string(kind.value_type if is_list(kind) else kind)


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold images: bytes, string, `{bytes, path}`, or a list of one of these."""
    if is_list(kind):
        kind = kind.value_type
    if pt.is_struct(kind):
        return bool({kind.field(i).name for i in range(kind.num_fields)} & {"bytes", "path"})
    return is_string(kind) or is_bytes(kind)


assert ROW_VARIABLE not in OUTPUT_COLUMNS
