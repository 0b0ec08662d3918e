"""Manifests as YAML: any value comes back as it was, for readers with other ideas of numbers than PyYAML's too."""

import re
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.manifests.text import yaml_text

HOSTILE = "\n\r\t \x85\u2028\ufeff\xa0a#:'\"\\-|>%{\x00\x7f"  # breaks, blanks and marks that mean something in YAML
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text(st.sampled_from(HOSTILE), max_size=8)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
)


@example("\n\x85")
@example("a\n\u2028")
@example(" a\nb \n")
@given(DATA)
def test_yaml_text_of_any_data_is_read_back_as_the_same(data: Any) -> None:
    assert yaml.safe_load(yaml_text([data])) == data


@pytest.mark.parametrize(
    "text",
    [
        "1e3",
        "08",
        "0o17",
        "0x1F",
        "1_000",
        ".5",
        "+1",
        "12:30",
        "2026-11-25",
        "on",
        "Yes",
        "NULL",
        "~",
        "",
        "-",
        "{{ ds }}",
    ],
)
def test_yaml_text_of_a_string_that_some_reader_takes_for_something_else_is_quoted(text: str) -> None:
    assert f'key: "{text}"\n' == yaml_text([{"key": text}])
    assert f'"{text}"' in yaml_text([{text: 1}])


@given(TEXTS.filter(lambda t: "\n" not in t))
def test_yaml_text_leaves_quotes_out_only_around_words_and_paths(text: str) -> None:
    written = yaml_text([[text]]).removeprefix("- ").removesuffix("\n")
    assert written[0] in "\"'" or re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_./-]*", written)


def test_yaml_text_of_several_documents_keeps_their_order_and_the_notes_above() -> None:
    text = yaml_text([{"b": 1, "a": 2}, {"c": "x\ny\n"}], notes=["a note\nwith a break"])
    assert text == "# a note with a break\nb: 1\na: 2\n---\nc: |\n  x\n  y\n"
    assert list(yaml.safe_load_all(text)) == [{"b": 1, "a": 2}, {"c": "x\ny\n"}]
