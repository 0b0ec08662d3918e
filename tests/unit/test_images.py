import base64
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ImageConfig
from pipeline.errors import RowError, Stage
from pipeline.render.images import decode, from_data_uri, load_cell
from pipeline.request import RequestImage

from .helpers import encoded, png, row_error

LIMITS = ImageConfig()
RED, BLUE = png("red"), png("blue")


def no_fetch(uri: str) -> bytes:
    raise AssertionError(f"{uri} was fetched")


def load(cell: Any, fetch: Callable[[str], bytes] = no_fetch, limits: ImageConfig = LIMITS) -> list[RequestImage]:
    return load_cell(cell, "image", limits, fetch)


def failed(cell: Any, limits: ImageConfig = LIMITS) -> RowError:
    error = row_error(lambda: load(cell, limits=limits))
    assert error.stage == Stage.IMAGE
    return error


def pixel(data: bytes, at: tuple[int, int] = (0, 0)) -> Any:
    image = decode(data, LIMITS).pixels
    assert image.mode == "RGB"
    return image.getpixel(at)


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no data."""
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "cell",
    [
        RED,
        bytearray(RED),
        memoryview(RED),
        {"bytes": RED, "path": None},
        {"bytes": RED, "path": "s3://elsewhere/blue.png"},
        {"bytes": RED},
        data_uri(RED),
        {"bytes": None, "path": data_uri(RED)},
        [RED],
    ],
    ids=["bytes", "bytearray", "memoryview", "struct", "bytes_win", "only_bytes", "data_uri", "path_data_uri", "list"],
)
def test_image_cell_of_any_form_gives_the_image(cell: Any) -> None:
    (image,) = load(cell)
    assert (image.pixels.size, image.pixels.getpixel((0, 0))) == ((4, 3), (255, 0, 0))
    assert image.sha256 == hashlib.sha256(RED).hexdigest()


@pytest.mark.parametrize("cell", ["https://x/a.png", {"bytes": None, "path": "https://x/a.png"}, ["https://x/a.png"]])
def test_image_uri_is_fetched(cell: Any) -> None:
    asked: list[str] = []

    def fetch(uri: str) -> bytes:
        asked.append(uri)
        return RED

    (image,) = load(cell, fetch)
    assert asked == ["https://x/a.png"]
    assert image.sha256 == hashlib.sha256(RED).hexdigest()


def test_image_list_keeps_order_and_mixes_forms() -> None:
    images = load([RED, {"bytes": BLUE, "path": None}, data_uri(RED), "s3://b/blue.png"], lambda uri: BLUE)
    assert [i.pixels.getpixel((0, 0)) for i in images] == [(255, 0, 0), (0, 0, 255), (255, 0, 0), (0, 0, 255)]


def test_image_empty_list_gives_none() -> None:
    assert load([]) == []


def test_image_fetch_error_fails_the_row_as_it_says() -> None:
    def fetch(uri: str) -> bytes:
        raise RowError(Stage.IMAGE, "image_missing", "gone")

    assert row_error(lambda: load("s3://b/a", fetch)).error_type == "image_missing"


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {}, [RED, None]])
def test_image_null_fails_the_row(cell: Any) -> None:
    error = failed(cell)
    assert (error.error_type, error.message) == ("image_null", "image: the image is null")


@pytest.mark.parametrize("cell", [b"", {"bytes": b"", "path": None}, "data:image/png;base64,"])
def test_image_empty_fails_the_row(cell: Any) -> None:
    error = failed(cell)
    assert (error.error_type, error.message) == ("image_empty", "image: there are no bytes")


def test_image_text_posing_as_one_fails_the_row_and_shows_its_start() -> None:
    error = failed(b"<html><body>Not found</body></html>")
    assert error.error_type == "not_an_image"
    assert "35 bytes that are no PNG, JPEG, WEBP, GIF, BMP, TIFF; they begin b'<html><body>Not " in error.message


@pytest.mark.parametrize("kind", ["ICO", "PPM", "EPS", "PDF"])
def test_image_format_that_is_not_taken_fails_the_row(kind: str) -> None:
    assert failed(encoded(Image.new("RGB", (32, 32)), kind)).error_type == "not_an_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image_format_that_is_taken_decodes(kind: str) -> None:
    (image,) = load(encoded(Image.new("RGB", (32, 16), (200, 10, 10)), kind))
    assert (image.pixels.mode, image.pixels.size) == ("RGB", (32, 16))
    assert np.allclose(np.asarray(image.pixels)[5, 5], (200, 10, 10), atol=6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_image_cut_short_fails_the_row(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    error = failed(data[: len(data) // 2])
    assert error.error_type == "image_truncated"
    assert error.message.startswith(f"image: {kind}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_image_cut_anywhere_is_a_row_error_or_an_image(kind: str) -> None:
    data = encoded(Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)), kind)
    for end in range(0, len(data), 7):
        try:
            assert decode(data[:end], LIMITS).pixels.mode == "RGB"
        except RowError as e:
            assert e.error_type in ("image_empty", "not_an_image", "image_truncated")


def test_image_bomb_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_it(self: Image.Image) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load_it)
    error = failed(png_header(100_000, 50_000))
    assert error.error_type == "image_too_large"
    assert error.message == "image: 100000 x 50000 pixels, over the limit of 64,000,000"


def test_image_of_just_max_pixels_accepted_and_one_more_refused() -> None:
    assert load(RED, limits=ImageConfig(max_pixels=12))
    assert failed(RED, ImageConfig(max_pixels=11)).error_type == "image_too_large"


def test_image_of_too_many_bytes_refused() -> None:
    error = failed(RED, ImageConfig(max_bytes=10))
    assert error.error_type == "image_too_large"
    assert error.message == f"image: {len(RED)} bytes, over the limit of 10"


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_image_without_pixels_fails_the_row(size: tuple[int, int]) -> None:
    data = b"GIF89a" + struct.pack("<HHBBB", *size, 0, 0, 0) + b",\0\0\0\0" + struct.pack("<HHB", *size, 0) + b"\2\0;"
    assert failed(data).error_type in ("not_an_image", "image_truncated", "image_empty")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png,abc", "the data URI is not base64: data:image/png"),
        ("data:", "the data URI is not base64: data:"),
        ("data:image/png;base64,###", "the data URI does not decode: "),
        ("data:image/png;base64,YWJ", "the data URI does not decode: "),
        ("data:image/png;base64,é", "the data URI does not decode: "),
    ],
)
def test_image_data_uri_broken_fails_the_row(uri: str, message: str) -> None:
    error = row_error(lambda: from_data_uri(uri))
    assert error.error_type == "not_an_image"
    assert error.message.startswith(message)


@pytest.mark.parametrize("cell", [5, -1, 1.5, True, [[1]], {"path": 5}, {"bytes": 7}], ids=repr)
def test_image_cell_of_a_strange_type_fails_the_row(cell: Any) -> None:
    """Chats in JSON come from strangers and can hold anything; a number must never become that many zero bytes."""
    error = failed(cell)
    assert error.error_type == "not_an_image"
    assert "they begin" not in error.message


def test_image_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.new("RGB", (16, 16), (250, 5, 5)).convert("CMYK"), "JPEG", quality=95)
    assert np.allclose(pixel(data), (250, 5, 5), atol=12)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (65535, 255), (32896, 128), (256, 1), (1000, 4)])
def test_image_16_bit_grey_is_scaled_to_8(value: int, expected: int) -> None:
    data = encoded(Image.fromarray(np.full((3, 3), value, dtype=np.uint16)))
    assert pixel(data) == (expected, expected, expected)


def test_image_rgba_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    data = encoded(image)
    assert pixel(data) == (255, 255, 255)
    assert np.allclose(pixel(data, (1, 0)), (127, 127, 127), atol=1)


def test_image_grey_with_alpha_is_laid_on_white() -> None:
    assert pixel(encoded(Image.new("LA", (1, 1), (0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("LA", (1, 1), (9, 255)))) == (9, 9, 9)


def test_image_palette_with_transparency_is_laid_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    data = encoded(image, transparency=0)
    assert pixel(data) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (0, 0, 255)


def test_image_rgb_with_a_transparent_colour_is_laid_on_white() -> None:
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    data = encoded(image, transparency=(0, 0, 0))
    assert pixel(data) == (255, 255, 255)
    assert pixel(data, (1, 0)) == (0, 0, 255)


def test_image_of_1_bit_becomes_black_and_white() -> None:
    image = Image.new("1", (2, 1), 0)
    image.putpixel((1, 0), 1)
    data = encoded(image)
    assert (pixel(data), pixel(data, (1, 0))) == ((0, 0, 0), (255, 255, 255))


def test_image_float_tiff_becomes_rgb() -> None:
    data = encoded(Image.fromarray(np.full((2, 2), 0.5, dtype=np.float32)), "TIFF")
    assert np.allclose(pixel(data), (127, 127, 127), atol=1)


def test_image_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert pixel(data) == (255, 0, 0)


def test_image_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (16, 8), "white")
    image.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be shown turned by 90 degrees clockwise
    out = decode(encoded(image, "PNG", exif=exif), LIMITS).pixels
    assert out.size == (8, 16)
    assert (out.getpixel((4, 1)), out.getpixel((4, 14))) == ((255, 0, 0), (255, 255, 255))


def test_image_broken_exif_does_not_end_the_run() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    try:
        assert decode(data, LIMITS).pixels.mode == "RGB"
    except RowError as e:
        assert e.stage == Stage.IMAGE
