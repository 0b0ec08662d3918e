"""Counts the tokens of requests before any engine runs: with the model's own tokenizer and chat template where they are at
hand, else by characters, said as such.

The one place that imports `tokenizers`; it needs neither transformers nor torch. A count is exact for text, and for images
of Llama 4, whose tiles follow from an image's size; of other models' images it is not known.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.chat import ChatTemplate
from cluster.profiles import find_profile
from cluster.tiles import Tiling, image_tokens_of
from pipeline.config import RunConfig
from pipeline.errors import HerdError
from pipeline.request import Request
from pipeline.spread import Range
from pipeline.storage import Store
from pipeline.survey import Counted, TokenCounter

SMALL_FILES = (
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""The files that say how a model's prompts are made; nothing else of a model is read here."""

CHARACTERS_A_TOKEN = Range(2.5, 4.0, 6.0)
"""Characters of text that a token holds in vocabularies of 100,000 to 200,000 entries: about 4 for English prose, 2.5 for
code and languages of other scripts, 6 for the plainest prose; an assumption that no tokenizer of these models was asked
about."""
TURN_TOKENS = 5
"""What Llama 4's chat template adds to a message: two marks around the role, the role, a blank line, an end of turn."""
PROMPT_TOKENS = 5
"""What it adds to a chat: its beginning, and the head of the answer."""
LLAMA_4_IMAGE = "<|image|>"


@contextlib.contextmanager
def model_folder(config: RunConfig) -> Iterator[Path | None]:
    """A local folder with the job's model's small files: the model's own, the hub's cache, or for `s3://` a copy of
    `SMALL_FILES` for the time of the block. None where they are not at hand; nothing is asked of the hub."""
    if config.engine.kind == "echo" or config.model is None:
        yield None
        return
    name = config.model
    if name.startswith("s3://"):
        with tempfile.TemporaryDirectory(prefix="herd-model-") as made:
            folder = Path(made)
            yield folder if _copied(name, config, folder) else None
        return
    own = Path(name).expanduser()
    yield own if own.is_dir() else _cached_by_hub(name)


def _copied(uri: str, config: RunConfig, folder: Path) -> bool:
    with contextlib.suppress(HerdError):
        store = Store(uri, config.input.storage)
        for file in store.list_folder(uri):
            name = file.uri.rsplit("/", 1)[-1]
            if name in SMALL_FILES:
                (folder / name).write_bytes(store.read(file.uri))
        return True
    return False


def _cached_by_hub(name: str) -> Path | None:
    profile = find_profile(name)
    hub_id = profile.hub_id if profile else name
    if not hub_id or "/" not in hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(hub_id, "tokenizer.json")
    except ValueError:  # not a name that a hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def token_counter(config: RunConfig, folder: Path | None, tiling: Tiling | None) -> TokenCounter:
    """What counts the job's tokens. `tiling` is how the model cuts images; None where that is not known."""
    if config.engine.kind == "echo":
        return Words()
    if folder is None:
        return Characters("the model's files are not at hand", tiling)
    try:
        template = ChatTemplate.of(folder, LLAMA_4_IMAGE if tiling else "")
        if template is None or not (folder / "tokenizer.json").is_file():
            return Characters("the model has no tokenizer.json or no chat template", tiling)
        return ModelTokens(template, folder / "tokenizer.json", tiling)
    except Exception as e:  # jinja2, json, tokenizers (a bare Exception): all say why in their message
        return Characters(f"the model's tokenizer or template cannot be used ({_line(e)})", tiling)


def _line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:100]


def _image_tokens(request: Request, tiling: Tiling | None) -> int | None:
    images = request.images
    if not images:
        return 0
    return None if tiling is None else sum(image_tokens_of(*image.pixels.size, tiling) for image in images)


class ModelTokens:
    """Counts with the model's own tokenizer. Implements `pipeline.survey.TokenCounter`."""

    basis = "the model's own tokenizer and chat template"
    error = Range.exactly(1.0)

    def __init__(self, template: ChatTemplate, tokenizer: Path, tiling: Tiling | None) -> None:
        from tokenizers import Tokenizer

        self._template, self._tiling = template, tiling
        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count(self, request: Request) -> Counted:
        text = self.text_tokens(self._template.render(request.messages))
        of_images = _image_tokens(request, self._tiling)
        # the template puts one token for each image, and the processor puts the image's own in its place
        return Counted(text + (of_images - len(request.images) if of_images else 0), of_images)

    def text_tokens(self, text: str) -> int:
        """Tokens of a text as it stands."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class Characters:
    """Counts characters and divides. Implements `pipeline.survey.TokenCounter`."""

    error = Range(
        CHARACTERS_A_TOKEN.expected / CHARACTERS_A_TOKEN.high, 1.0, CHARACTERS_A_TOKEN.expected / CHARACTERS_A_TOKEN.low
    )

    def __init__(self, why: str, tiling: Tiling | None) -> None:
        per = CHARACTERS_A_TOKEN
        self.basis = f"{per.expected:g} characters a token ({per.low:g} to {per.high:g}), since {why}"
        self._tiling = tiling

    def count(self, request: Request) -> Counted:
        of_images = _image_tokens(request, self._tiling)
        template = PROMPT_TOKENS + TURN_TOKENS * len(request.messages)
        return Counted(self.text_tokens(request.text) + template + (of_images or 0), of_images)

    def text_tokens(self, text: str) -> int:
        """Tokens of a text, about."""
        return max(round(len(text) / CHARACTERS_A_TOKEN.expected), 1 if text else 0)


class Words:
    """Counts words, as the echo engine does, which has no model. Implements `pipeline.survey.TokenCounter`."""

    basis = "words, as the echo engine counts: there is no model"
    error = Range.exactly(1.0)

    def count(self, request: Request) -> Counted:
        return Counted(self.text_tokens(request.text), 0)

    def text_tokens(self, text: str) -> int:
        """Words of a text."""
        return len(text.split())
