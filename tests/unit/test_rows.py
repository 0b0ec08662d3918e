from typing import Any

import pytest

from pipeline.errors import RowError, Stage
from pipeline.render.rows import Renderer
from pipeline.request import Request, RequestImage

from .helpers import job, png, row_error

RED, BLUE = png("red"), png("blue")


def rendered(row: dict[str, Any], **changes: Any) -> Request:
    return Renderer(job(**changes)).render(row)


def failed(row: dict[str, Any], **changes: Any) -> RowError:
    return row_error(lambda: rendered(row, **changes))


def shape(request: Request) -> list[tuple[str, list[Any]]]:
    """Roles and parts, with images as the colour of their first pixel."""
    return [
        (m.role, [p.pixels.getpixel((0, 0)) if isinstance(p, RequestImage) else p for p in m.parts])
        for m in request.messages
    ]


def test_renderer_text_job_asks_one_turn() -> None:
    request = rendered({"text": "hi"})
    assert shape(request) == [("user", ["hi"])]
    assert request.sampling.values == {"temperature": 0.0, "max_tokens": 512}


def test_renderer_order_is_system_then_images_by_column_then_user() -> None:
    request = rendered(
        {"text": "hi", "a": [RED, BLUE], "b": BLUE},
        input={"uri": "x", "images": ["b", "a"]},
        prompt={"system": "Be {{ text }}.", "user": "Say {{ text }}"},
    )
    red, blue = (255, 0, 0), (0, 0, 255)
    assert shape(request) == [("system", ["Be hi."]), ("user", [blue, red, blue, "Say hi"])]
    assert request.text == "Be hi.\nSay hi"
    assert len(request.images) == 3


def test_renderer_system_stands_before_messages() -> None:
    request = rendered(
        {"chat": [{"role": "user", "content": "hi"}], "text": "brief"},
        prompt={"system": "Be {{ text }}.", "messages": "chat"},
    )
    assert shape(request) == [("system", ["Be brief."]), ("user", ["hi"])]


def test_renderer_messages_decode_their_images() -> None:
    chat = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what?"}]}]
    assert shape(rendered({"chat": chat}, prompt={"messages": "chat"})) == [("user", [(255, 0, 0), "what?"])]


def test_renderer_messages_image_error_names_the_column() -> None:
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": None}}]}]
    error = failed({"chat": chat}, prompt={"messages": "chat"})
    assert (error.stage, error.error_type, error.message) == (Stage.IMAGE, "image_null", "chat: the image is null")


def test_renderer_image_error_names_the_column() -> None:
    error = failed({"text": "a", "photo": b""}, input={"uri": "x", "images": "photo"})
    assert (error.stage, error.error_type, error.message) == (Stage.IMAGE, "image_empty", "photo: there are no bytes")


def test_renderer_image_limits_are_the_jobs() -> None:
    changes = {"input": {"uri": "x", "images": "photo"}, "render": {"images": {"max_pixels": 3}}}
    assert failed({"text": "a", "photo": RED}, **changes).error_type == "image_too_large"


def test_renderer_local_image_refused_by_default() -> None:
    error = failed({"text": "a", "photo": "/etc/hostname"}, input={"uri": "x", "images": "photo"})
    assert error.error_type == "address_not_allowed"


SAMPLING = {"uri": "x", "sampling": "settings"}


@pytest.mark.parametrize("cell", [{"temperature": 0.5, "seed": None}, '{"temperature": 0.5, "seed": null}'])
def test_renderer_sampling_of_the_row_overrides_the_jobs(cell: Any) -> None:
    request = rendered({"text": "a", "settings": cell}, input=SAMPLING, sampling={"seed": 1})
    assert request.sampling.values == {"temperature": 0.5, "max_tokens": 512, "seed": 1}


def test_renderer_sampling_null_leaves_the_jobs() -> None:
    assert rendered({"text": "a", "settings": None}, input=SAMPLING).sampling.values == {
        "temperature": 0.0,
        "max_tokens": 512,
    }


def test_renderer_sampling_of_one_row_does_not_reach_the_next() -> None:
    renderer = Renderer(job(input=SAMPLING))
    renderer.render({"text": "a", "settings": {"max_tokens": 1}})
    assert renderer.render({"text": "a", "settings": None}).sampling.values["max_tokens"] == 512


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{", "settings is not JSON: "),
        ("[" * 100_000, "settings is not JSON: "),
        ("9" * 5000, "settings is not JSON: "),
        ("[1]", "settings is not an object of sampling parameters"),
        ("5", "settings is not an object of sampling parameters"),
        ('"a"', "settings is not an object of sampling parameters"),
    ],
    ids=lambda value: value[:20],
)
def test_renderer_bad_sampling_fails_the_row(cell: str, message: str) -> None:
    error = failed({"text": "a", "settings": cell}, input=SAMPLING)
    assert (error.stage, error.error_type) == (Stage.RENDER, "bad_sampling")
    assert error.message.startswith(message)


def test_renderer_several_samples_fail_the_row() -> None:
    """What `sampling` refuses in the job file, a row must not bring in by its column."""
    error = failed({"text": "a", "settings": {"n": 2}}, input=SAMPLING)
    assert (error.stage, error.error_type) == (Stage.RENDER, "bad_sampling")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_renderer_empty_prompt_fails_the_row(text: str) -> None:
    error = failed({"text": text})
    assert (error.stage, error.error_type, error.message) == (Stage.RENDER, "empty_prompt", "the prompt is empty")


def test_renderer_empty_text_beside_an_image_is_a_prompt() -> None:
    request = rendered({"text": "", "image": RED}, input={"uri": "x", "images": "image"})
    assert shape(request) == [("user", [(255, 0, 0), ""])]


def test_renderer_empty_image_list_leaves_the_text() -> None:
    assert shape(rendered({"text": "a", "image": []}, input={"uri": "x", "images": "image"})) == [("user", ["a"])]


def test_renderer_template_error_is_the_rows() -> None:
    error = failed({"text": None})
    assert (error.error_type, error.message) == ("null_value", "prompt.user prints a null: text")
