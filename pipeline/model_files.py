"""Whether a model's files are all there and whole, told from names, sizes and a few of their bytes. Pure: who calls says
how bytes are read, from a disk or from an object store."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import ConfigError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
INDEX = "model.safetensors.index.json"

Read = Callable[[str, int, int | None], bytes]
"""A file's bytes by its name, from one offset to another (None: to its end)."""


def check_model(sizes: Mapping[str, int], read: Read, where: str) -> None:
    """Raises `ConfigError` naming the first file of a model that is missing or cut short. `sizes` holds the bytes of each
    file of the model's folder, `where` names the folder."""

    def wrong(what: str) -> ConfigError:
        return ConfigError(what, where=where, todo="Download or copy the model again.")

    if "config.json" not in sizes:
        raise wrong("The model has no config.json")
    if INDEX in sizes:
        try:
            names = sorted(set(json.loads(read(INDEX, 0, None))["weight_map"].values()))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise wrong(f"{INDEX} is not an index of weight files") from None
        missing = [n for n in names if n not in sizes]
        if missing:
            raise wrong(f"{len(missing)} of the model's {len(names)} weight files are missing, first {missing[0]}")
    else:
        names = sorted(n for n in sizes if n.endswith(".safetensors"))
        if not names:
            raise wrong("The model has no .safetensors weights (pickled weights are not loaded)")
    for name in names:
        try:
            expected = _expected_bytes(name, sizes[name], read)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise wrong(f"Weight file {name} has a header that cannot be read") from None
        if expected != sizes[name]:
            raise wrong(f"Weight file {name} has {sizes[name]:,} bytes and its header says {expected:,}")
    if not any(n in sizes for n in TOKENIZER_FILES[:3]):
        raise wrong("The model has no tokenizer files")
    if template_of(sizes, read) is None:
        raise wrong("The model has no chat template (chat_template.jinja, or in tokenizer_config.json)")


def _expected_bytes(name: str, size: int, read: Read) -> int:
    """A safetensors file's size by its header: 8 bytes of header length, the header, and the last tensor's end."""
    length = int.from_bytes(read(name, 0, 8), "little") if size else 0
    if length == 0 or size < 8 + length:
        return 8 + max(length, 1)
    header = json.loads(read(name, 8, 8 + length))
    ends = [t["data_offsets"][1] for tensor, t in header.items() if tensor != "__metadata__"]
    return 8 + length + max(ends, default=0)


def template_of(names: Mapping[str, int], read: Read) -> str | None:
    """The text of the model's chat template, wherever it stands; None if there is none."""
    for name in TEMPLATE_FILES:
        if name in names:
            return read(name, 0, None).decode()
    config: dict[str, Any] = {}
    if "tokenizer_config.json" in names:
        config = json.loads(read("tokenizer_config.json", 0, None))
    template = config.get("chat_template")
    return None if template is None else template if isinstance(template, str) else json.dumps(template)
