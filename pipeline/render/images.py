"""From a cell of an image column to decoded RGB images, within limits, whoever wrote the bytes.

A cell holds bytes, a `{bytes, path}` struct (bytes win), a URI, a data URI, or a list of these. An image's size is read
from its header before anything is decoded, so that a decompression bomb costs nothing. Of an animation the first frame
is taken, transparency is laid on white, 16-bit grey is scaled to 8, and the EXIF orientation is applied.
"""

import base64
import hashlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import ImageConfig
from pipeline.errors import RowError, Stage
from pipeline.request import RequestImage

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
Image.MAX_IMAGE_PIXELS = None  # our own limit is checked below, before decoding, and is the job's to set


def image_error(error_type: str, message: str) -> RowError:
    return RowError(Stage.IMAGE, error_type, message)


def load_cell(cell: Any, column: str, limits: ImageConfig, fetch: Callable[[str], bytes]) -> list[RequestImage]:
    """The images of one cell, in order; an empty list for an empty list.

    `fetch` turns a URI into bytes and raises `RowError` when it cannot.

    Raises:
        RowError: `image_null`, `image_empty`, `image_too_large`, `not_an_image`, `image_truncated`, or what `fetch`
            says.
    """
    cells = cell if isinstance(cell, list) else [cell]
    return [decode(_bytes_of(c, column, fetch), limits, column) for c in cells]


def _bytes_of(cell: Any, column: str, fetch: Callable[[str], bytes]) -> bytes:
    if isinstance(cell, dict):
        cell = cell.get("bytes") if cell.get("bytes") is not None else cell.get("path")
    if cell is None:
        raise image_error("image_null", f"{column}: the image is null")
    if isinstance(cell, str):
        return from_data_uri(cell) if cell.startswith("data:") else fetch(cell)
    if not isinstance(cell, bytes | bytearray | memoryview):
        raise image_error("not_an_image", f"{column}: a {type(cell).__name__} is neither bytes nor a URI")
    return bytes(cell)


def from_data_uri(uri: str) -> bytes:
    """The bytes of a base64 data URI."""
    head, _, body = uri.partition(",")
    if not head.endswith(";base64"):
        raise image_error("not_an_image", f"the data URI is not base64: {head[:60]}")
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as e:  # binascii.Error is one
        raise image_error("not_an_image", f"the data URI does not decode: {e}") from None


def decode(data: bytes, limits: ImageConfig, column: str = "image") -> RequestImage:
    """A decoded RGB image."""
    if not data:
        raise image_error("image_empty", f"{column}: there are no bytes")
    if len(data) > limits.max_bytes:
        raise image_error("image_too_large", f"{column}: {len(data):,} bytes, over the limit of {limits.max_bytes:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise image_error(
            "not_an_image", f"{column}: {len(data):,} bytes that are no {', '.join(FORMATS)}; they begin {data[:16]!r}"
        ) from None
    except Exception as e:  # Pillow's parsers raise whatever a broken header leads them to
        raise image_error("not_an_image", f"{column}: {type(e).__name__}: {e}") from None
    width, height = image.size
    if width * height > limits.max_pixels:
        raise image_error(
            "image_too_large", f"{column}: {width} x {height} pixels, over the limit of {limits.max_pixels:,}"
        )
    try:
        image.load()
        rgb = to_rgb(ImageOps.exif_transpose(image))
    except OSError as e:
        kind = "image_truncated" if "truncated" in str(e).lower() or len(data) < 64 else "not_an_image"
        raise image_error(kind, f"{column}: {image.format} of {len(data):,} bytes: {e}") from None
    except Exception as e:  # as above: SyntaxError for a broken PNG chunk, struct.error, zlib.error, ...
        raise image_error("image_truncated", f"{column}: {image.format}: {type(e).__name__}: {e}") from None
    return RequestImage(rgb, hashlib.sha256(data).hexdigest())


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.float64)
        image = Image.fromarray((grey / (65535 / 255) + 0.5).clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        grey = np.asarray(image)
        image = Image.fromarray((grey * (255 if grey.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        ground = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(ground, over).convert("RGB")
    return image.convert("RGB")
