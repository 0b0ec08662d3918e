import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import StorageConfig
from pipeline.errors import ConfigError
from pipeline.plan import RowGroup, cut
from pipeline.sample import Slice, choose, read


def plan_of(groups: list[int], *, row_bytes: int = 100, per_file: int = 2) -> pa.Table:
    found = [RowGroup(f"f{n // per_file}", "e", 1, n % per_file, r, r * row_bytes) for n, r in enumerate(groups)]
    return cut(found, max_rows=50, max_bytes=2**40)


def test_choose_more_rows_than_there_are_takes_all() -> None:
    found = choose(plan_of([120, 3, 70]), 500)
    assert [(s.input_uri, s.row_group, s.rows) for s in found] == [
        ("f0", 0, tuple(range(120))),
        ("f0", 1, (0, 1, 2)),
        ("f1", 0, tuple(range(70))),
    ]


def test_choose_is_the_same_for_a_seed_and_another_for_another() -> None:
    plan = plan_of([1000] * 40)
    assert choose(plan, 100, seed=1) == choose(plan, 100, seed=1) != choose(plan, 100, seed=2)


def test_choose_spreads_over_files_and_reads_few_row_groups() -> None:
    found = choose(plan_of([1000] * 400), 512)
    assert len(found) <= 16
    assert sum(len(s.rows) for s in found) == pytest.approx(512, abs=16)
    places = sorted(int(s.input_uri[1:]) for s in found)
    assert all(later - earlier < 30 for earlier, later in itertools.pairwise(places))


def test_choose_of_small_row_groups_still_finds_its_rows() -> None:
    found = choose(plan_of([10] * 1000), 512)
    assert sum(len(s.rows) for s in found) >= 400


def test_choose_gives_every_row_about_the_same_chance() -> None:
    """Half of the rows lie in one group, half in a hundred small ones."""
    plan = plan_of([5000, *[50] * 100])
    taken = [
        sum(len(s.rows) for s in choose(plan, 100, seed=seed) if s.input_uri == "f0" and s.row_group == 0)
        for seed in range(50)
    ]
    assert sum(taken) / 50 == pytest.approx(50, rel=0.1)


def test_choose_of_heavy_row_groups_goes_through_their_beginning_only() -> None:
    found = choose(plan_of([1000] * 40, row_bytes=1_000_000), 160, max_bytes=32_000_000)
    assert all(s.is_head and max(s.rows) < 20 for s in found)


def test_choose_no_rows_gives_none() -> None:
    assert choose(plan_of([10]), 0) == []


def test_read_gives_the_rows_of_a_slice(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": range(5000), "other": range(5000)}), file, row_group_size=2500)
    assert read(Slice(str(file), 1, (0, 7, 1300, 2499), 8.0), ["n"], StorageConfig()) == [
        {"n": 2500},
        {"n": 2507},
        {"n": 3800},
        {"n": 4999},
    ]


def test_read_of_no_columns_gives_empty_rows(tmp_path: Path) -> None:
    assert read(Slice(str(tmp_path / "none"), 0, (0, 1), 1.0), [], StorageConfig()) == [{}, {}]


def test_read_of_a_broken_row_group_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"t": [str(n) * 10 for n in range(1000)]}), file, compression=None, use_dictionary=False)
    data = bytearray(file.read_bytes())
    data[4:30] = bytes(26)
    file.write_bytes(bytes(data))
    with pytest.raises(ConfigError, match="Row group 0 cannot be read"):
        read(Slice(str(file), 0, (5,), 8.0), ["t"], StorageConfig())
