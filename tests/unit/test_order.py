import pyarrow as pa
import pytest

from pipeline.columns import Columns
from pipeline.host.order import asking_order


def columns(images: tuple[str, ...] = (), template: tuple[str, ...] = (), messages: str | None = None) -> Columns:
    return Columns((), images, template, messages, None)


def test_rows_with_the_same_beginning_follow_each_other() -> None:
    rows = pa.table({"text": ["b 2", "a 1", "b 1", "a 2"]})
    assert asking_order(rows, columns(template=("text",)), longest_first=False) == [1, 3, 2, 0]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])]
)
def test_rows_with_the_same_image_follow_each_other(kind: pa.DataType) -> None:
    images = [b"cat", b"dog", b"cat", b"dog"]
    cells = [{"bytes": i, "path": None} for i in images] if pa.types.is_struct(kind) else images
    rows = pa.table({"image": pa.array(cells, kind), "text": ["d", "c", "b", "a"]})
    order = asking_order(rows, columns(images=("image",), template=("text",)), longest_first=False)
    assert [images[i] for i in order] == [b"cat", b"cat", b"dog", b"dog"]


def test_longest_rows_go_first_at_the_tail() -> None:
    rows = pa.table({"text": ["aa", "b", "cccc", "dd", None]})
    assert asking_order(rows, columns(template=("text",)), longest_first=True) == [2, 0, 3, 1, 4]


def test_equal_rows_keep_the_inputs_order() -> None:
    rows = pa.table({"text": ["same"] * 5})
    assert asking_order(rows, columns(template=("text",)), longest_first=True) == [0, 1, 2, 3, 4]


def test_columns_that_cannot_be_compared_take_no_part() -> None:
    rows = pa.table({"n": [3, 1, 2], "many": [["x"], ["y"], []]})
    for longest_first in (False, True):
        assert asking_order(rows, columns(template=("n", "many")), longest_first=longest_first) == [0, 1, 2]


def test_dictionary_columns_are_compared_by_their_values() -> None:
    rows = pa.table({"text": pa.array(["z", "a", "z"]).dictionary_encode()})
    assert asking_order(rows, columns(template=("text",)), longest_first=False) == [1, 0, 2]
