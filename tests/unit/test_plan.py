from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.plan import (
    RUNTIME_ENGINE_ARGS,
    SCHEMA,
    UNEVEN,
    RowGroup,
    Shard,
    answer_settings,
    cut,
    differences,
    fingerprint,
    num_parts,
    shards_of,
)

from .helpers import job

DIGESTS = {"weights": "sha256:a", "tokenizer": None, "template": None}


def group(number: int = 0, rows: int = 10, size: int = 100, *, uri: str = "a", etag: str = "e") -> RowGroup:
    return RowGroup(uri, etag, 1000, number, rows, size)


sizes = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 10**6)), max_size=12)
limits = st.tuples(st.integers(1, 700), st.integers(1, 10**6))


@given(sizes, limits)
def test_cut_shards_cover_each_group_exactly_in_order(
    given_sizes: list[tuple[int, int]], limit: tuple[int, int]
) -> None:
    groups = [group(n, rows, size) for n, (rows, size) in enumerate(given_sizes)]
    max_rows, max_bytes = limit
    shards = list(shards_of(cut(groups, max_rows=max_rows, max_bytes=max_bytes)))
    assert [s.shard for s in shards] == list(range(len(shards)))
    assert [s.row_group for s in shards] == sorted(s.row_group for s in shards)
    for g in groups:
        mine = [s for s in shards if s.row_group == g.row_group]
        assert [r for s in mine for r in range(s.first_row, s.first_row + s.num_rows)] == list(range(g.num_rows))
        assert len(mine) >= num_parts(g.num_rows, g.num_bytes, max_rows=max_rows, max_bytes=max_bytes)
        lengths = [s.num_rows for s in mine]
        assert all(0 < n <= max_rows for n in lengths)
        assert not lengths or max(lengths) - min(lengths) <= 1
        assert sum(s.num_bytes for s in mine) <= g.num_bytes


@given(sizes, limits)
def test_cut_by_evenness_adds_at_most_half_as_many_shards_again(
    given_sizes: list[tuple[int, int]], limit: tuple[int, int]
) -> None:
    groups = [group(n, rows, size) for n, (rows, size) in enumerate(given_sizes)]
    max_rows, max_bytes = limit
    shards = list(shards_of(cut(groups, max_rows=max_rows, max_bytes=max_bytes)))
    plain = sum(num_parts(g.num_rows, g.num_bytes, max_rows=max_rows, max_bytes=max_bytes) for g in groups)
    assert len(shards) <= 1.5 * plain + len(groups)
    mean = sum(g.num_bytes for g in groups) / max(1, plain)
    assert all(s.num_rows == 1 or s.num_bytes <= UNEVEN * mean * 1.01 + 1 for s in shards)


def test_cut_group_with_rows_twenty_times_longer_gives_shards_like_the_others() -> None:
    groups = [group(n, rows=100, size=1000 * (20 if n == 39 else 1)) for n in range(40)]
    sizes = [s.num_bytes for s in shards_of(cut(groups, max_rows=100, max_bytes=10**6))]
    assert sizes[:39] == [1000] * 39
    assert len(sizes) > 45 and max(sizes) <= 3000


@given(st.integers(1, 10**7), st.integers(0, 10**12), st.integers(1, 10**5), st.integers(1, 10**10))
def test_num_parts_is_enough_and_no_more_than_rows(rows: int, size: int, max_rows: int, max_bytes: int) -> None:
    parts = num_parts(rows, size, max_rows=max_rows, max_bytes=max_bytes)
    assert 1 <= parts <= rows
    assert -(-rows // parts) <= max_rows
    assert parts == rows or size <= parts * max_bytes


def test_cut_empty_groups_give_no_shard() -> None:
    table = cut([group(0, rows=0), group(1, rows=3), group(2, rows=0)], max_rows=5, max_bytes=100)
    assert [s.row_group for s in shards_of(table)] == [1]


def test_cut_no_groups_gives_an_empty_table() -> None:
    table = cut([], max_rows=5, max_bytes=100)
    assert (table.num_rows, table.schema) == (0, SCHEMA)


def test_cut_row_larger_than_max_bytes_is_a_shard_of_its_own() -> None:
    shards = list(shards_of(cut([group(rows=3, size=3000)], max_rows=100, max_bytes=10)))
    assert [s.num_rows for s in shards] == [1, 1, 1]


def test_cut_keeps_what_the_group_says() -> None:
    table = cut([RowGroup("s3://b/k", "etag", 77, 5, 4, 40)], max_rows=2, max_bytes=10**6)
    assert list(shards_of(table)) == [
        Shard(0, "s3://b/k", "etag", 77, 5, 0, 2, 20),
        Shard(1, "s3://b/k", "etag", 77, 5, 2, 2, 20),
    ]
    assert [s.name for s in shards_of(table)] == ["000000", "000001"]


def test_cut_memory_grows_with_groups_and_not_with_rows() -> None:
    """A hundred thousand groups of a million rows each: a hundred billion rows."""

    def groups(rows: int) -> Iterator[RowGroup]:
        for n in range(100_000):
            yield RowGroup("s3://bucket/part-00000.parquet", "0123456789abcdef", 10**9, n, rows, 10**9)

    table = cut(groups(10**6), max_rows=10**6, max_bytes=10**9)
    assert table.num_rows == 100_000
    assert table.nbytes < 100_000 * 150
    assert table.nbytes == cut(groups(1), max_rows=10**6, max_bytes=10**9).nbytes


def mark(changes: dict[str, Any] | None = None, *, digests: dict[str, Any] = DIGESTS, **of_group: Any) -> str:
    return fingerprint(
        answer_settings(job(**(changes or {})), digests), cut([group(**of_group)], max_rows=5, max_bytes=1000)
    )


def test_fingerprint_same_job_and_input_is_the_same() -> None:
    assert mark() == mark()
    assert mark().startswith("sha256:")


@pytest.mark.parametrize("changed", [{"etag": "f"}, {"uri": "b"}])
def test_fingerprint_changed_input_changes(changed: dict[str, str]) -> None:
    assert mark(**changed) != mark()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": {"user": "{{ text }}!"}},
        {"prompt": {"user": "{{ text }}", "system": "be brief"}},
        {"sampling": {"temperature": 0.1}},
        {"answer": {"choice": ["a"]}},
        {"model": "other"},
        {"engine": {"kind": "echo", "max_model_len": 9}},
        {"engine": {"kind": "echo", "dtype": "float16"}},
        {"shard": {"max_rows": 7}},
        {"input": {"uri": "in.parquet", "carry": ["id"]}},
        {"render": {"images": {"max_pixels": 5}}},
    ],
)
def test_fingerprint_changed_setting_changes(changes: dict[str, Any]) -> None:
    assert mark(changes) != mark()


def test_fingerprint_changed_weights_changes() -> None:
    assert mark(digests={**DIGESTS, "weights": "sha256:b"}) != mark()


def test_fingerprint_null_inside_a_schema_counts() -> None:
    one: dict[str, Any] = {"answer": {"json_schema": {"properties": {"a": {"const": None}}}}}
    other: dict[str, Any] = {"answer": {"json_schema": {"properties": {"a": {}}}}}
    assert mark(one) != mark(other)


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"kind": "echo", "tensor_parallel_size": 8, "max_num_seqs": 16}},
        {"engine": {"kind": "echo", "gpu_memory_utilization": 0.5}},
        {"engine": {"kind": "echo", "core_process": True}},
        {"pool": {"min": 2, "max": 4}},
        {"name": "other"},
        {"render": {"concurrency": 2}},
        {"limits": {"max_shard_attempts": 9}},
        {"sampling": {"temperature": 0.0}},
    ],
)
def test_fingerprint_setting_of_speed_alone_does_not_change(changes: dict[str, Any]) -> None:
    assert mark(changes) == mark()


def test_runtime_engine_args_hold_no_setting_that_changes_answers() -> None:
    assert not RUNTIME_ENGINE_ARGS & {"max_model_len", "dtype", "quantization", "seed", "kv_cache_dtype", "revision"}


def test_differences_name_the_key_with_both_values() -> None:
    old, new = answer_settings(job(), DIGESTS), answer_settings(job(sampling={"temperature": 1}), DIGESTS)
    assert differences(old, new) == ["sampling.temperature: 0.0 -> 1"]


def test_differences_of_equal_settings_are_none() -> None:
    assert differences({"a": {"b": [1]}}, {"a": {"b": [1]}}) == []


def test_differences_name_keys_on_one_side_only() -> None:
    assert differences({"a": {"b": 1}}, {"a": {}, "c": 2}) == ["a.b: 1 -> None", "c: None -> 2"]
