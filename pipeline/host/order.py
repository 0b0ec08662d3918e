"""In which order the rows of a shard are asked. Pure; the answers are put back into the input's order afterwards.

Rows with the same image, or prompts that begin alike, follow each other, so that they meet in the engine's caches before
what they share is evicted. In the last shards of a run the longest rows go first: one long answer that begins last would
leave the engine all but empty until it ends.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from pipeline.columns import Columns, is_bytes, is_string


def asking_order(rows: pa.Table, columns: Columns, *, longest_first: bool) -> list[int]:
    """The rows' indices in the order in which they are best asked. Ties keep the input's order.

    Compared are the columns as they stand in the prompt: images, then the template's or the chat column. A column of
    another type than text and bytes (or a struct of such) does not take part.
    """
    names = [*columns.images, *columns.template, *([columns.messages] if columns.messages else [])]
    keys = [key for name in names for key in _comparable(rows[name].combine_chunks())]
    table = pa.table(keys, [str(i) for i in range(len(keys))]) if keys else pa.table({})
    by = [(name, "ascending") for name in table.column_names]
    if longest_first and keys:
        lengths = [pc.fill_null(pc.binary_length(key), 0).cast(pa.int64()) for key in keys]
        total = lengths[0]
        for more in lengths[1:]:
            total = pc.add(total, more)
        table = table.append_column("length", total)
        by.insert(0, ("length", "descending"))
    if not by:
        return list(range(rows.num_rows))
    table = table.append_column("index", pa.array(range(rows.num_rows), pa.int32()))
    return pc.sort_indices(table, [*by, ("index", "ascending")]).to_pylist()  # type: ignore[no-any-return]


def _comparable(column: pa.Array) -> list[pa.Array]:
    kind = column.type
    if pt.is_struct(kind):
        return [key for i in range(kind.num_fields) for key in _comparable(pc.struct_field(column, i))]
    if pt.is_dictionary(kind):
        return _comparable(column.dictionary_decode())
    return [column] if is_string(kind) or is_bytes(kind) else []
