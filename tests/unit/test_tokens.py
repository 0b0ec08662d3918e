"""Tokens counted with the demo's own tokenizer; that they are those that vLLM counts is proven in tests/e2e/test_plan.py."""

import shutil
from pathlib import Path

from PIL import Image

from cluster.families import from_folder
from cluster.tokens import Characters, ModelTokens, Words, model_folder, token_counter
from pipeline.request import Message, Request, RequestImage, Sampling
from tests.conftest import DEMO

from .helpers import job

MODEL = DEMO / "model"
TILING = from_folder(MODEL).tiling


def request(*parts: str | RequestImage) -> Request:
    return Request((Message("user", parts),), Sampling({}))


def image(width: int, height: int) -> RequestImage:
    return RequestImage(Image.new("RGB", (width, height)), "x")


def test_model_tokens_of_text_are_its_bytes_and_the_templates_marks() -> None:
    counter = token_counter(job(engine={"kind": "vllm"}, model=str(MODEL)), MODEL, TILING)
    assert isinstance(counter, ModelTokens)
    marks = 1 + 2 + len("user\n\n") + 1 + 2 + len("assistant\n\n")  # the demo's tokens are bytes
    found = counter.count(request("hello"))
    assert (found.prompt_tokens, found.image_tokens) == (marks + 5, 0)


def test_model_tokens_of_images_go_by_their_tiles() -> None:
    counter = token_counter(job(engine={"kind": "vllm"}, model=str(MODEL)), MODEL, TILING)
    text = counter.count(request("hello")).prompt_tokens
    four_tiles, two_tiles = 4 * 5 + 4 + 3, 4 * 3 + 2 + 3
    assert counter.count(request(image(112, 112), "hello")).image_tokens == four_tiles
    both = counter.count(request(image(112, 112), image(112, 56), "hello"))
    assert (both.image_tokens, both.prompt_tokens) == (four_tiles + two_tiles, text + four_tiles + two_tiles)


def test_tokens_without_the_models_files_are_estimated_and_said_so() -> None:
    counter = token_counter(job(engine={"kind": "vllm"}, model="org/none"), None, None)
    assert isinstance(counter, Characters)
    assert counter.count(request("x" * 400)).prompt_tokens == 100 + 10
    assert counter.basis == "4 characters a token (2.5 to 6), since the model's files are not at hand"
    assert counter.error.low < 1 < counter.error.high


def test_images_of_an_unknown_processor_are_not_counted() -> None:
    assert token_counter(job(), None, None).count(request("a b")).image_tokens == 0
    assert Characters("why", None).count(request(image(10, 10), "a")).image_tokens is None


def test_broken_tokenizer_is_estimated_and_said_so(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "m")
    (tmp_path / "m/tokenizer.json").write_text("{}")
    counter = token_counter(job(engine={"kind": "vllm"}, model="m"), tmp_path / "m", None)
    assert isinstance(counter, Characters) and "cannot be used" in counter.basis


def test_echo_counts_words_as_its_engine_does() -> None:
    counter = token_counter(job(), None, None)
    assert isinstance(counter, Words)
    assert counter.count(request("one two  three")).prompt_tokens == 3


def test_model_folder_of_a_local_model_is_its_own() -> None:
    with model_folder(job(engine={"kind": "vllm"}, model=str(MODEL))) as folder:
        assert folder == MODEL


def test_model_folder_of_what_is_not_at_hand_is_none() -> None:
    for model in ("no-owner", "owner/none-of-this-name", "s3://no-such-bucket-of-herd/model"):
        with model_folder(
            job(
                engine={"kind": "vllm"},
                model=model,
                input={"uri": "x", "storage": {"endpoint_url": "http://127.0.0.1:1"}},
            )
        ) as folder:
            assert folder is None


def test_model_folder_in_the_hubs_cache_is_found(tmp_path: Path, monkeypatch: object) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--owner--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").write_text("{}")
    (tmp_path / "models--owner--name/refs").mkdir()
    (tmp_path / "models--owner--name/refs/main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # type: ignore[attr-defined]
    with model_folder(job(engine={"kind": "vllm"}, model="owner/name")) as folder:
        assert folder == snapshot
