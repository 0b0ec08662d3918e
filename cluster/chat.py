"""A model's chat template, filled as vLLM fills it, without vLLM, transformers or torch.

The environment is that of transformers' `apply_chat_template` (jinja2's sandbox, blocks trimmed, `raise_exception`,
`tojson` without escapes, `strftime_now`, loop controls, `generation` blocks), and what messages become before it is what
vLLM's `parse_chat_messages` makes of Herd's: a list of parts for a template that goes through parts, else one string.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

from pipeline.errors import RowError, Stage
from pipeline.model import read_template
from pipeline.request import Message

PROBE = "herd-probe"


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _environment() -> jinja2.Environment:
    out = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    out.filters["tojson"] = _to_json
    out.globals.update(raise_exception=_raise, strftime_now=lambda format: datetime.now().strftime(format))
    return out


class ChatTemplate:
    """A model's template with its special tokens.

    Raises:
        jinja2.TemplateError: it does not parse.
    """

    def __init__(self, text: str, special_tokens: dict[str, str], placeholder: str = "") -> None:
        """`placeholder` stands for an image where the template takes strings only."""
        self._template = _environment().from_string(text)
        self._special_tokens, self._placeholder = special_tokens, placeholder
        self._knows_developer = "developer" in text
        self.takes_parts = self._is_text_of_parts_seen()

    @classmethod
    def of(cls, folder: Path, placeholder: str = "") -> "ChatTemplate | None":
        """The template of a model's folder; None where there is none, or none by default."""
        text = read_template(folder)
        if text is None:
            return None
        if text.lstrip().startswith(('{"', "[")):  # several by name, or one inside a JSON document
            found = json.loads(text)
            named = {t["name"]: t["template"] for t in found} if isinstance(found, list) else found
            text = named.get("default") or named.get("chat_template")
        config = folder / "tokenizer_config.json"
        tokens = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in (json.loads(config.read_text()) if config.is_file() else {}).items()
            if key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
        }
        return cls(text, tokens, placeholder) if text else None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt of a chat, up to where the answer begins.

        Raises:
            RowError: `request_refused`, with what the template says.
        """
        try:
            return self._fill([self._turn(message) for message in messages])
        except Exception as e:  # a template runs a model's expressions over a stranger's data
            raise RowError(Stage.RENDER, "request_refused", f"chat template: {e}") from None

    def _fill(self, turns: list[dict[str, Any]]) -> str:
        return self._template.render(
            messages=turns, tools=None, documents=None, add_generation_prompt=True, **self._special_tokens
        )

    def _turn(self, message: Message) -> dict[str, Any]:
        role = "system" if message.role == "developer" and not self._knows_developer else message.role
        texts = [part for part in message.parts if isinstance(part, str)]
        num_images = len(message.parts) - len(texts)
        if not self.takes_parts or (role == "tool" and not num_images):
            placeholders = [self._placeholder] * num_images
            return {"role": role, "content": "\n".join([*placeholders, *filter(None, texts)])}
        parts = message.parts if num_images else ("\n".join(texts),)
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
        return {"role": role, "content": content}

    def _is_text_of_parts_seen(self) -> bool:
        """Whether the text of a part comes out as text: not left out, and not as the list that it stands in."""
        try:
            made = self._fill([{"role": "user", "content": [{"type": "text", "text": PROBE}]}])
        except Exception:  # a template that takes strings alone fails in ways of its own
            return False
        return PROBE in made and f"'{PROBE}'" not in made and f'"{PROBE}"' not in made
