import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bundles import MAX_BYTES, MAX_ROWS, MAX_SHARDS, bundles, in_order, tail
from pipeline.plan import RowGroup, cut


def plan(sizes: list[tuple[int, int]]) -> pa.Table:
    """A plan with a shard for each (rows, bytes), and nothing cut further."""
    table = cut(
        [RowGroup("a", "e", 1, n, rows, 1) for n, (rows, _) in enumerate(sizes)], max_rows=10**9, max_bytes=10**12
    )
    return table.set_column(7, "num_bytes", pa.array([size for _, size in sizes], pa.int64()))


shard_sizes = st.lists(st.tuples(st.integers(1, 50_000), st.integers(1, 2 * MAX_BYTES)), min_size=1, max_size=200)


@given(shard_sizes, st.integers(1, 64))
def test_bundles_hold_each_shard_once_within_their_limits(sizes: list[tuple[int, int]], lanes: int) -> None:
    ordered = in_order(plan(sizes))
    packed = bundles(ordered, lanes)
    assert [s for b in packed for s in b["shard"].to_pylist()] == ordered["shard"].to_pylist()
    assert sorted(ordered["shard"].to_pylist()) == list(range(len(sizes)))
    for bundle in packed:
        rows, size = sum(bundle["num_rows"].to_pylist()), sum(bundle["num_bytes"].to_pylist())
        assert bundle.num_rows == 1 or (bundle.num_rows <= MAX_SHARDS and rows <= MAX_ROWS and size <= MAX_BYTES)


def test_bundles_shrink_to_single_shards_so_that_no_lane_is_left_with_many() -> None:
    counts = [b.num_rows for b in bundles(in_order(plan([(10, 10)] * 1000)), 8)]
    assert counts[0] == 62 and counts == sorted(counts, reverse=True)
    assert counts[-16:] == [1] * 16
    assert len(counts) < 120


def test_order_puts_heavy_shards_first_and_keeps_the_plan_otherwise() -> None:
    sizes = [(10, 100)] * 20 + [(10, 900), (10, 2000)] + [(10, 100)] * 5
    assert in_order(plan(sizes))["shard"].to_pylist() == [21, 20, *range(20), *range(22, 27)]


def test_tail_is_what_is_at_work_when_nothing_is_left_to_begin() -> None:
    ordered = in_order(plan([(10, 10)] * 30))
    assert tail(ordered, 4) == {26, 27, 28, 29}
    assert tail(ordered, 100) == frozenset(range(30))
