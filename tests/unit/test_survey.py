"""Sampled rows of real Parquet files, rendered by the run's own code and counted."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.tokens import Words
from pipeline.config import RunConfig
from pipeline.footers import make_plan
from pipeline.sample import choose
from pipeline.survey import Survey, survey

from .helpers import job, png


def looked_at(config: RunConfig, *, max_model_len: int | None = None, max_images: int | None = None) -> Survey:
    columns, _, table = make_plan(config)
    return survey(
        config,
        columns,
        choose(table, 1000),
        Words(),
        total_rows=sum(table["num_rows"].to_pylist()),
        max_model_len=max_model_len,
        max_images=max_images,
    )


def texts(tmp_path: Path, values: list[Any], **changes: Any) -> RunConfig:
    pq.write_table(pa.table({"text": pa.array(values, pa.string())}), tmp_path / "a.parquet", row_group_size=2)
    return job(input={"uri": str(tmp_path)}, **changes)


def test_survey_counts_rows_and_names_what_would_be_quarantined(tmp_path: Path) -> None:
    found = looked_at(texts(tmp_path, ["one two", None, "", "three"]))
    assert [row.reason for row in found.rows] == [None, "render/null_value", "render/empty_prompt", None]
    assert [row.tokens.prompt_tokens for row in found.answerable if row.tokens] == [2, 1]
    assert dict(found.reasons) == {"render/null_value": 1, "render/empty_prompt": 1}
    assert found.examples["render/null_value"] == "prompt.user prints a null: text"
    assert [row.group for row in found.rows] == [0, 0, 1, 1]


def test_survey_prompt_as_long_as_the_context_is_too_long(tmp_path: Path) -> None:
    found = looked_at(texts(tmp_path, ["a b c", "a b c d"], sampling={"max_tokens": 100}), max_model_len=4)
    assert [row.reason for row in found.rows] == [None, "render/prompt_too_long"]
    assert found.rows[0].max_tokens == 1  # what the context leaves


def test_survey_rows_may_have_limits_of_their_own(tmp_path: Path) -> None:
    options = ['{"max_tokens": 7}', None, '{"max_tokens": 0}']
    pq.write_table(pa.table({"text": ["a", "b", "c"], "o": options}), tmp_path / "a.parquet")
    found = looked_at(job(input={"uri": str(tmp_path), "sampling": "o"}))
    assert [row.max_tokens for row in found.rows] == [7, 512, None]
    assert found.rows[2].reason == "render/bad_sampling"


def test_survey_images_are_counted_and_broken_ones_named(tmp_path: Path) -> None:
    cells = [[png()], [png(), png()], [png(size=(90, 90))[:-40]]]
    pq.write_table(pa.table({"photos": pa.array(cells, pa.list_(pa.binary()))}), tmp_path / "a.parquet")
    config = job(input={"uri": str(tmp_path), "images": ["photos"]}, prompt={"user": "?"})
    found = looked_at(config, max_images=1)
    assert [row.reason for row in found.rows] == [None, "render/request_refused", "image/image_truncated"]
    assert found.rows[0].images == 1


def test_survey_knows_identical_requests_where_they_are_answered_once(tmp_path: Path) -> None:
    found = looked_at(texts(tmp_path, ["a", "b", "a"]))
    keys = [row.key for row in found.rows]
    assert keys[0] == keys[2] != keys[1]
    apart = looked_at(texts(tmp_path, ["a", "a"], cache={"in_run": False}))
    by_chance = looked_at(texts(tmp_path, ["a", "a"], sampling={"temperature": 1.0}))
    assert {row.key for row in [*apart.rows, *by_chance.rows]} == {None}


def test_survey_of_a_prompt_without_columns_reads_none(tmp_path: Path) -> None:
    found = looked_at(texts(tmp_path, ["a", "b", "c"], prompt={"user": "Say hello"}))
    assert len(found.answerable) == 3
