"""Small makers that several test files share."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from pipeline.config import RunConfig
from pipeline.config_errors import parse_config
from pipeline.errors import ConfigError, RowError


def job_data(**changes: Any) -> dict[str, Any]:
    """A small sound job as plain data, with top-level keys replaced."""
    return {
        "input": {"uri": "in.parquet"},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo"},
        "output": {"uri": "out"},
        **changes,
    }


def job(**changes: Any) -> RunConfig:
    return parse_config(job_data(**changes))


def refusal(**changes: Any) -> str:
    """What a user reads when this job is refused."""
    with pytest.raises(ConfigError) as caught:
        job(**changes)
    return str(caught.value)


def row_error(call: Callable[[], Any]) -> RowError:
    """The `RowError` that the call raises."""
    with pytest.raises(RowError) as caught:
        call()
    return caught.value


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(color: str = "red", size: tuple[int, int] = (4, 3)) -> bytes:
    return encoded(Image.new("RGB", size, color))
