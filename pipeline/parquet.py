"""Parquet files in a store: how Herd writes them, and reads them in spite of bytes that arrive garbled."""

from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.storage import Store
from pipeline.storage_faults import code_of

TRIES = 3
Made = TypeVar("Made")


class GarbledError(Exception):
    """The bytes are not what a Parquet file holds, however often they are read."""


def to_parquet(table: pa.Table, metadata: dict[str, str]) -> bytes:
    """A table as a Parquet file: zstd, dictionary-encoded where values repeat, page checksums, `metadata` in its key-value
    section. Logical types stay plain (no Arrow dictionaries), which every reader takes."""
    table = table.replace_schema_metadata({k.encode(): v.encode() for k, v in metadata.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def from_parquet(
    store: Store, uri: str, read: Callable[[pq.ParquetFile], Made], *, block_size: int = 2**20, buffer_size: int = 0
) -> Made:
    """What `read` makes of a file. Page checksums are verified where the file has any. With a `buffer_size` columns are
    read so many bytes at a time, for those who may stop before the end of a row group.

    Raises:
        GarbledError: it cannot be decoded, although it was read several times.
        StorageError: it is out of reach.
    """

    def once() -> Made:
        with store.open(uri, block_size=block_size) as f:
            return read(pq.ParquetFile(f, buffer_size=buffer_size, page_checksum_verification=True))

    for _ in range(TRIES):
        try:
            return store.call(uri, once)
        except (pa.ArrowInvalid, StorageError) as e:
            cause = e.__cause__ if isinstance(e, StorageError) else e
            if not _is_garbled(cause):
                raise  # the network, the disk or a refusal, not the file
            said = str(cause).splitlines()[0]
    raise GarbledError(said)


def _is_garbled(e: BaseException | None) -> bool:
    """Whether Arrow complains of the bytes: some of its complaints come as a bare OSError."""
    return isinstance(e, pa.ArrowInvalid) or (type(e) is OSError and e.errno is None and code_of(e) is None)
