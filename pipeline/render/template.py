"""Prompt templates: Jinja2 in its sandbox, over the columns of a row.

A missing column and a null are errors of the row rather than an empty string or the word "None" in a prompt: say
`{{ text or "" }}` or `{{ text | default("n/a", true) }}` where a null is expected. Templates see values, never code.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.errors import ConfigError, RowError, Stage

ROW_VARIABLE = "row"


class _NullValueError(jinja2.UndefinedError):
    """A null was about to become text."""


class _Null(jinja2.StrictUndefined):
    """A column's null: false, equal to none, and an error in any text, by whatever filter it gets there."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    def __eq__(self, other: object) -> bool:  # type: ignore[override]
        return other is None or isinstance(other, _Null)

    def __ne__(self, other: object) -> bool:  # type: ignore[override]
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(None)


def _refuse_null(value: Any) -> Any:
    if value is None or isinstance(value, _Null):
        raise _NullValueError
    return value


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=_refuse_null, autoescape=False, keep_trailing_newline=True
)
_ENVIRONMENT.globals.clear()  # a column may well be named `range` or `dict`
_ENVIRONMENT.tests["none"] = lambda value: value is None or isinstance(value, _Null)


@contextlib.contextmanager
def _syntax(key: str) -> Iterator[None]:
    try:
        yield
    except jinja2.TemplateSyntaxError as e:
        raise ConfigError(
            f"The template does not parse: {e.message}", where=f"{key}, line {e.lineno}", todo="It is Jinja2."
        ) from None


def parse(text: str, key: str) -> jinja2.nodes.Template:
    """A template's syntax tree, of which nothing has been evaluated (compiling one evaluates its constants).

    Raises:
        ConfigError: it does not parse; `key` is named.
    """
    with _syntax(key):
        return _ENVIRONMENT.parse(text)


class Template:
    """One compiled template. `key` is the job's key that it stands under, for messages."""

    def __init__(self, text: str, key: str) -> None:
        self.key = key
        with _syntax(key):
            names = find_undeclared_variables(_ENVIRONMENT.parse(text))
            self._template = _ENVIRONMENT.from_string(text)
            self._template.globals = {}  # there are none, and an empty dict is copied sooner than jinja2's chain of them
        self.uses_whole_row = ROW_VARIABLE in names
        self.variables = sorted(names - {ROW_VARIABLE})

    def render(self, row: Mapping[str, Any]) -> str:
        """The filled template.

        Raises:
            RowError: `null_value`, `template_error`.
        """
        values = {k: _Null(name=k, exc=_NullValueError) if v is None else v for k, v in row.items()}
        try:
            return self._template.render({**values, ROW_VARIABLE: values})
        except _NullValueError:
            nulls = [v for v in (self.variables or row) if row.get(v) is None]
            raise RowError(
                Stage.RENDER, "null_value", f"{self.key} prints a null: {', '.join(nulls) or 'an expression'}"
            ) from None
        except Exception as e:  # a template runs a user's expressions over a row's data: anything may be raised
            raise RowError(Stage.RENDER, "template_error", f"{self.key}: {type(e).__name__}: {e}") from None
