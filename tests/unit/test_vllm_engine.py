"""What Herd decides for vLLM before it starts one; vLLM itself is for tests/e2e."""

from types import SimpleNamespace

import pytest

from pipeline.engine.vllm import _needs_one_group


@pytest.mark.parametrize(
    ("chunk", "max_model_len", "expected"),
    [
        (8192, 4096, True),  # Scout with a short context
        (8192, 8192, True),  # its chunks begin at multiples of 8192, so the first one holds it all
        (8192, 8193, False),
        (8192, 32768, False),  # local layers give blocks back, which is what groups are for
        (None, 4096, False),  # no such layers, and whatever else vLLM keeps in groups is left to it
    ],
)
def test_layers_share_blocks_where_no_chunk_is_shorter_than_the_context(
    chunk: int | None, max_model_len: int, expected: bool
) -> None:
    assert _needs_one_group(SimpleNamespace(attention_chunk_size=chunk, max_model_len=max_model_len)) is expected


def test_model_without_a_word_on_chunks_is_left_alone() -> None:
    assert not _needs_one_group(SimpleNamespace(max_model_len=4096))
