from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, RowError, Stage
from pipeline.render.template import Template

from .helpers import row_error


def filled(text: str, row: dict[str, Any]) -> str:
    return Template(text, "prompt.user").render(row)


def failed(text: str, row: dict[str, Any]) -> RowError:
    return row_error(lambda: filled(text, row))


def test_template_fills_columns() -> None:
    assert filled("{{ a }} is {{ b.c }}, {{ d[0] }}", {"a": 1, "b": {"c": "x"}, "d": ["y"]}) == "1 is x, y"


def test_template_fills_row() -> None:
    assert filled("{% for k in row %}{{ k }}={{ row[k] }};{% endfor %}", {"a": 1, "b": 2}) == "a=1;b=2;"


def test_template_keeps_markup_and_trailing_newline() -> None:
    assert filled("<{{ a }}>\n", {"a": "<b>&"}) == "<<b>&>\n"


def test_template_value_is_never_a_template() -> None:
    assert filled("{{ a }}", {"a": "{{ 7 * 7 }}"}) == "{{ 7 * 7 }}"


def test_template_missing_field_fails_the_row() -> None:
    error = failed("{{ a.b }}", {"a": {}})
    assert (error.stage, error.error_type) == (Stage.RENDER, "template_error")
    assert error.message.startswith("prompt.user: UndefinedError: ")
    assert "'b'" in error.message


def test_template_missing_column_fails_the_row() -> None:
    error = failed("{{ a }}", {})
    assert error.error_type == "template_error"
    assert "'a' is undefined" in error.message


def test_template_null_fails_the_row_and_names_the_column() -> None:
    error = failed("{{ a }} {{ b }}", {"a": "x", "b": None})
    assert (error.stage, error.error_type) == (Stage.RENDER, "null_value")
    assert error.message == "prompt.user prints a null: b"


def test_template_null_inside_a_struct_fails_the_row() -> None:
    error = failed("{{ a.b }}", {"a": {"b": None}})
    assert (error.error_type, error.message) == ("null_value", "prompt.user prints a null: an expression")


def test_template_null_by_row_variable_names_the_column() -> None:
    assert failed("{{ row.b }}", {"a": 1, "b": None}).message == "prompt.user prints a null: b"


@pytest.mark.parametrize("text", ['{{ x or "" }}', '{{ x | default("", true) }}', "{% if x %}{{ x }}{% endif %}"])
def test_template_null_that_is_provided_for_is_allowed(text: str) -> None:
    assert filled(text, {"x": None}) == ""


@pytest.mark.parametrize("text", ["{{ x | trim }}", "{{ x | upper }}", '{{ x ~ "." }}', '{{ "%s" | format(x) }}'])
def test_template_null_through_a_filter_is_not_the_word_none(text: str) -> None:
    """A null is an error of the row, by whatever way it gets into the text."""
    assert failed(text, {"x": None}).error_type in ("null_value", "template_error")


def test_template_expression_that_raises_fails_the_row() -> None:
    error = failed("{{ 1 // a }}", {"a": 0})
    assert error.error_type == "template_error"
    assert "ZeroDivisionError" in error.message


def test_template_syntax_error_refused_with_key_and_line() -> None:
    with pytest.raises(ConfigError) as caught:
        Template("one\n{{ a b }}", "prompt.system")
    message = str(caught.value)
    assert message.startswith("The template does not parse: ")
    assert "(prompt.system, line 2)" in message
    assert "It is Jinja2." in message


def test_template_unknown_filter_refused() -> None:
    with pytest.raises(ConfigError, match="No filter named 'shout'"):
        Template("{{ a | shout }}", "prompt.user")


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ ''['__class__'] }}",
        "{{ a.__class__.__subclasses__() }}",
        "{{ ''|attr('__class__') }}",
        "{{ lipsum.__globals__['os'].system('true') }}",
        "{{ lipsum.__globals__.os.popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ row.__class__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(a) }}",
        "{{ ''.__class__.__base__.__subclasses__()[0] }}",
        "{{ items.append(1) }}",
        "{{ row.update({'a': 2}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ config }}",
        "{{ os }}",
        "{{ open('/etc/passwd') }}",
        "{{ __import__('os') }}",
    ],
)
def test_template_reaching_out_of_its_row_is_refused(text: str) -> None:
    row = {"a": "x", "items": [1]}
    assert failed(text, row).error_type == "template_error"
    assert row == {"a": "x", "items": [1]}


@pytest.mark.parametrize("name", ["lipsum", "cycler", "joiner", "namespace", "dict", "range"])
def test_template_sees_nothing_but_the_row(name: str) -> None:
    """A column may bear the name of one of Jinja's own globals: it is the column that is read and printed."""
    assert Template(f"{{{{ {name} }}}}", "prompt.user").variables == [name]
    assert "is undefined" in failed(f"{{{{ {name} }}}}", {}).message


@pytest.mark.parametrize("name", ["self", "args", "context", "environment", "loop", "with space", "ünï", ""])
def test_template_unused_column_of_any_name_does_no_harm(name: str) -> None:
    assert filled("{{ a }}", {"a": "x", name: "y"}) == "x"


def test_template_variables_are_told() -> None:
    template = Template("{% set z = b %}{{ z }}{{ a }}{{ row.q }}", "prompt.user")
    assert template.variables == ["a", "b"]
    assert template.uses_whole_row


@given(st.dictionaries(st.from_regex(r"c_[a-z0-9_]{0,8}", fullmatch=True), st.text(), min_size=1, max_size=5))
def test_template_row_of_any_texts_renders_to_exactly_these(row: dict[str, str]) -> None:
    template = Template("|".join(f"{{{{ {name} }}}}" for name in row), "prompt.user")
    assert template.render(row) == "|".join(row.values())
