from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.cache import AnswerCache, space
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.host.pieces import piece_schema
from pipeline.model import ModelRef

from .helpers import job

MODEL = ModelRef("m", "/models/m", weights_digest="sha256:w")
KEYS = [f"{n:064x}" for n in range(1 << 200, (1 << 200) + 8)]


def config(tmp_path: Path, **sections: Any) -> RunConfig:
    return job(cache={"uri": str(tmp_path / "cache")}, **sections)


def pieces(settings: RunConfig, *rows: dict[str, Any]) -> pa.Table:
    answered = {"response": "yes", "answer": "yes", "finish_reason": "stop", "prompt_tokens": 5, "output_tokens": 2}
    schema = piece_schema(settings)
    whole = [{**dict.fromkeys(schema.names), **answered, "index": n, **row} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(whole, schema=schema)


def test_kept_answers_are_recalled_by_their_keys(tmp_path: Path) -> None:
    settings = config(tmp_path)
    AnswerCache(settings, MODEL).keep(
        pieces(settings, {"key": KEYS[0], "request_sha256": "r0"}, {"key": KEYS[1], "response": "no"}), "run-1"
    )
    AnswerCache(settings, MODEL).keep(pieces(settings, {"key": KEYS[2], "response": "perhaps"}), "run-2")
    cache = AnswerCache(settings, MODEL)
    assert cache.read_index() == 3
    found = cache.recall(KEYS[0])
    assert found is not None and (found.completion.text, found.request_sha256, found.run_id) == ("yes", "r0", "run-1")
    assert (len(found.completion.token_ids), found.completion.prompt_tokens) == (2, 5)
    assert [found.run_id for key in KEYS[1:3] if (found := cache.recall(key))] == ["run-1", "run-2"]
    # keys that agree in their first 64 bits are told apart
    assert cache.recall(KEYS[3]) is None
    assert cache.recall("f" * 64) is None


def test_what_was_not_asked_or_not_answered_or_is_chance_is_not_kept(tmp_path: Path) -> None:
    settings = config(tmp_path)
    AnswerCache(settings, MODEL).keep(
        pieces(
            settings,
            {"key": KEYS[0], "stage": "answer", "error_type": "not_json"},
            {"key": KEYS[1], "cached_from": "run-0"},
            {"key": None},
        ),
        "run-1",
    )
    assert AnswerCache(settings, MODEL).read_index() == 0


def test_segments_that_cannot_be_read_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    settings = config(tmp_path)
    AnswerCache(settings, MODEL).keep(pieces(settings, {"key": KEYS[0]}), "run-1")
    opened = AnswerCache(settings, MODEL)
    assert opened.read_index() == 1
    (segment,) = (tmp_path / "cache" / space(settings, MODEL)).glob("*.parquet")
    segment.write_bytes(b"PAR1 and then something else")
    assert opened.recall(KEYS[0]) is None
    assert AnswerCache(settings, MODEL).read_index() == 0


def test_same_answers_twice_are_one_segment(tmp_path: Path) -> None:
    settings = config(tmp_path)
    for _ in range(2):
        AnswerCache(settings, MODEL).keep(pieces(settings, {"key": KEYS[0]}), "run-1")
    assert len(list((tmp_path / "cache" / space(settings, MODEL)).glob("*.parquet"))) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"answer": {"choice": ["yes", "no"]}},
        {"engine": {"kind": "vllm", "quantization": "fp8"}},
    ],
)
def test_other_shapes_and_settings_that_change_answers_have_a_space_of_their_own(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    plain = config(tmp_path, model="m", engine={"kind": "vllm"})
    assert space(config(tmp_path, model="m", **{"engine": {"kind": "vllm"}, **changed}), MODEL) != space(plain, MODEL)


def test_settings_of_speed_and_sampling_share_a_space(tmp_path: Path) -> None:
    plain = config(tmp_path, model="m", engine={"kind": "vllm"})
    other = config(tmp_path, model="m", engine={"kind": "vllm", "max_num_seqs": 7}, sampling={"max_tokens": 3})
    assert space(other, MODEL) == space(plain, MODEL)  # sampling is a part of each request's key


def test_other_weights_have_a_space_of_their_own_and_unknown_ones_none(tmp_path: Path) -> None:
    settings = config(tmp_path, model="m", engine={"kind": "vllm"})
    assert space(settings, ModelRef("m", "/m", weights_digest="sha256:x")) != space(settings, MODEL)
    with pytest.raises(ConfigError, match=r"cache\.uri"):
        space(settings, ModelRef("m", "hub/m"))
