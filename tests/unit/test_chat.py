"""A model's chat template, against transformers' own filling of it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cluster.chat import ChatTemplate
from pipeline.request import Message, RequestImage
from tests.conftest import DEMO

from .helpers import row_error

IMAGE = RequestImage(Image.new("RGB", (112, 112)), "a")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def demo() -> ChatTemplate:
    found = ChatTemplate.of(DEMO / "model", "<|image|>")
    assert found is not None
    return found


def test_demo_template_takes_parts_and_puts_images_in_their_place() -> None:
    text = demo().render([Message("user", (IMAGE, "Which digit is this?"))])
    assert text == (
        "<|begin_of_text|><|header_start|>user<|header_end|>\n\n<|image|>Which digit is this?<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )


def test_template_of_llama_4_is_filled_as_transformers_fills_it() -> None:
    from transformers.models.llama4.processing_llama4 import chat_template
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [
        Message("system", (" Be brief. ",)),
        Message("user", (IMAGE, "What is it?")),
        Message("tool", ('{"a": "<b>"}',)),
    ]
    turns = [
        {"role": "system", "content": [{"type": "text", "text": " Be brief. "}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "tool", "content": '{"a": "<b>"}'},
    ]
    options = {"add_generation_prompt": True, "bos_token": "<|begin_of_text|>"}
    expected, _ = render_jinja_template([turns], chat_template=chat_template, **options)
    assert ChatTemplate(chat_template, {"bos_token": "<|begin_of_text|>"}).render(messages) == expected[0]


def test_template_that_takes_strings_gets_images_before_the_text() -> None:
    template = ChatTemplate(CHATML, {}, "<image>")
    assert not template.takes_parts
    text = template.render([Message("user", ("Look:", IMAGE, "What is it?"))])
    assert text.startswith("<|im_start|>user\n<image>\nLook:\nWhat is it?<|im_end|>")


def test_template_that_refuses_a_chat_fails_its_row() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') if messages|length > 1 }}", {})
    error = row_error(lambda: template.render([Message("user", ("a",)), Message("user", ("b",))]))
    assert (error.stage, error.error_type) == ("render", "request_refused")
    assert "roles must alternate" in error.message


def test_template_that_knows_no_developer_gets_a_system_turn() -> None:
    assert ChatTemplate(CHATML, {}).render([Message("developer", ("x",))]).startswith("<|im_start|>system")


def test_template_with_generation_blocks_is_filled() -> None:
    template = ChatTemplate("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", {})
    assert template.render([Message("user", ("hello",))]) == "hello"


@pytest.mark.parametrize(
    "stored",
    [
        {"chat_template.json": json.dumps({"chat_template": CHATML})},
        {"tokenizer_config.json": json.dumps({"chat_template": CHATML})},
        {"tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": CHATML}]})},
    ],
    ids=["document", "config", "named"],
)
def test_template_is_found_wherever_a_model_keeps_it(stored: dict[str, str], tmp_path: Path) -> None:
    for name, text in stored.items():
        (tmp_path / name).write_text(text)
    found = ChatTemplate.of(tmp_path)
    assert found is not None and found.render([Message("user", ("hi",))]).startswith("<|im_start|>user\nhi")


def test_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.of(tmp_path) is None
