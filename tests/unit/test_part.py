from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import footers, plan
from pipeline.config import SampleConfig
from pipeline.footers import make_plan
from pipeline.part import SLICE_ROWS, file_rows, narrowed, sample_slices
from pipeline.plan import RowGroup, cut, shards_of
from tests.unit.helpers import job, refusal

Place = tuple[str, int, int]
files = st.lists(st.lists(st.integers(0, 60), max_size=4), min_size=1, max_size=6)


def planned(sizes: list[list[int]], max_rows: int = 16) -> pa.Table:
    groups = [
        RowGroup(f"f{f}", f"e{f}", 9, g, rows, rows * 10)
        for f, inner in enumerate(sizes)
        for g, rows in enumerate(inner)
    ]
    return cut(groups, max_rows=max_rows, max_bytes=10**9)


def places(table: pa.Table) -> list[Place]:
    shards = shards_of(table)
    return [(s.input_uri, s.row_group, r) for s in shards for r in range(s.first_row, s.first_row + s.num_rows)]


@given(files, st.integers(1, 300))
def test_limit_keeps_the_first_rows_in_plan_order(sizes: list[list[int]], limit: int) -> None:
    table = planned(sizes)
    kept = narrowed(table, [(0, limit)])
    assert places(kept) == places(table)[:limit]
    assert kept["shard"].to_pylist() == list(range(kept.num_rows))
    assert kept.schema == plan.SCHEMA


@given(files, st.integers(1, 300), st.integers(0, 5))
def test_sample_has_its_rows_each_once_and_in_plan_order(sizes: list[list[int]], rows: int, seed: int) -> None:
    table = planned(sizes)
    every = places(table)
    kept = narrowed(table, sample_slices(file_rows(table), SampleConfig(rows=rows, seed=seed)))
    found = places(kept)
    assert len(found) == min(rows, len(every))
    assert found == [place for place in every if place in set(found)]
    assert all(0 < s.num_rows <= 16 and s.num_bytes == s.num_rows * 10 for s in shards_of(kept))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), st.integers(1, 500), st.integers(0, 5))
def test_sample_is_spread_over_all_files(rows: list[int], wanted: int, seed: int) -> None:
    slices = sample_slices(rows, SampleConfig(rows=wanted, seed=seed))
    begins = [sum(rows[:n]) for n in range(len(rows) + 1)]
    each = [
        sum(max(0, min(last, begins[f + 1]) - max(first, begins[f])) for first, last in slices)
        for f in range(len(rows))
    ]
    assert sum(each) == min(wanted, sum(rows))
    if wanted >= len(rows):
        assert min(each) >= 1
    else:
        assert max(each) == 1
    if wanted < sum(rows):
        assert all(last - first <= SLICE_ROWS for first, last in slices)


def test_sample_goes_by_rows_once_each_file_has_one() -> None:
    slices = sample_slices([10, 1000], SampleConfig(rows=102))
    assert sum(last - first for first, last in slices if first < 10) == 2  # one, and its share of a hundred


def test_sample_by_another_seed_is_another_one_and_by_the_same_the_same() -> None:
    one, again, other = (sample_slices([1000] * 3, SampleConfig(rows=50, seed=seed)) for seed in (0, 0, 1))
    assert one == again != other


def test_sample_is_the_same_on_any_machine() -> None:
    assert sample_slices([100, 40], SampleConfig(rows=12, seed=7)) == [(30, 38), (105, 109)]


def test_plan_of_a_part_differs_from_the_whole_in_its_settings_and_fingerprint(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"] * 100}), tmp_path / "a.parquet", row_group_size=30)
    whole = job(input={"uri": str(tmp_path)})
    marks = set()
    for part in ({}, {"limit": 40}, {"limit": 41}, {"sample": {"rows": 40}}, {"sample": {"rows": 40, "seed": 1}}):
        config = job(input={"uri": str(tmp_path), **part})
        settings = plan.answer_settings(config, {})
        table = make_plan(config)[2]
        assert sum(table["num_rows"].to_pylist()) == (part.get("limit") or 40 if part else 100)
        marks.add(plan.fingerprint(settings, table))
        lines = plan.differences(plan.answer_settings(whole, {}), settings)
        assert [line.partition(":")[0] for line in lines] == [f"input.{key}" for key in part]
    assert len(marks) == 5


def test_fingerprint_of_a_whole_job_is_what_it_was_before_there_were_parts() -> None:
    assert plan.answer_settings(job(), {})["input"].keys() == {"uri", "images", "carry", "sampling"}


def test_limit_reads_only_the_footers_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(100):
        pq.write_table(pa.table({"text": ["a"] * 10}), tmp_path / f"{n:03d}.parquet")
    read: list[str] = []
    real = footers.read_footer
    monkeypatch.setattr(footers, "read_footer", lambda file, config: (read.append(file.uri), real(file, config))[1])
    table = make_plan(job(input={"uri": str(tmp_path), "limit": 25}))[2]
    assert table["num_rows"].to_pylist() == [10, 10, 5]
    assert len(set(read)) == footers.CONCURRENCY
    assert make_plan(job(input={"uri": str(tmp_path), "limit": 2000}))[2].num_rows == 100


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"limit": 1, "sample": {"rows": 1}}, "give either `limit` or `sample`"),
        ({"limit": 0}, "`input.limit`"),
        ({"sample": {"seed": 1}}, "`input.sample.rows` is missing"),
        ({"sample": {"rows": 0}}, "`input.sample.rows`"),
        ({"incremental": True, "limit": 1}, "`incremental` takes files as a whole"),
    ],
)
def test_part_that_makes_no_sense_is_refused(part: dict[str, object], sentence: str) -> None:
    assert sentence in refusal(input={"uri": "a", **part})
