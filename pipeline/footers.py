"""Reads the footers of the input files, many at a time, and turns them into row groups for the plan.

No data page is read. A file that is not Parquet, is cut short, or whose needed columns have other types than the first
file's is refused here, before any engine starts.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import plan
from pipeline.columns import Columns, resolve
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.parquet import GarbledError, from_parquet
from pipeline.storage import CONCURRENCY, FileInfo, Store


def make_plan(config: RunConfig) -> tuple[Columns, pa.Schema, pa.Table]:
    """The job's columns, their Arrow schema, and its plan (`plan.SCHEMA`).

    Raises:
        StorageError: an input that is missing or out of reach.
        ConfigError: an input that cannot serve the job, or that holds no rows.
    """
    stores = [Store(uri, config.input.storage) for uri in config.input.uri]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        listings = pool.map(lambda pair: pair[0].find(pair[1]), zip(stores, config.input.uri, strict=True))
        sources = {f.uri: (store, f) for store, files in zip(stores, listings, strict=True) for f in files}
    files = list(sources.values())
    schema = read_footer(*files[0]).schema.to_arrow_schema()
    columns = resolve(config, schema, where=files[0][1].uri)
    read_schema = pa.schema([schema.field(name) for name in columns.read])

    def groups() -> Iterator[plan.RowGroup]:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            for found in pool.map(
                partial(row_groups, config=config, read_schema=read_schema), *zip(*files, strict=True)
            ):
                yield from found

    table = plan.cut(groups(), max_rows=config.shard.max_rows, max_bytes=int(config.shard.max_bytes))
    if table.num_rows == 0:
        raise ConfigError(f"The input has no rows in its {len(files)} files", where=", ".join(config.input.uri))
    return columns, read_schema, table


def read_footer(store: Store, file: FileInfo) -> pq.FileMetaData:
    """The footer of a file.

    Raises:
        ConfigError: it is no Parquet file, or it is cut short.
        StorageError: it is out of reach.
    """
    try:
        return from_parquet(store, file.uri, lambda parquet: parquet.metadata)
    except GarbledError as e:
        raise ConfigError(
            f"This is not a Parquet file, or it is cut short ({file.size:,} bytes): {e}",
            where=file.uri,
            todo="Write it again, or leave it out of `input.uri`.",
        ) from None


def row_groups(store: Store, file: FileInfo, *, config: RunConfig, read_schema: pa.Schema) -> list[plan.RowGroup]:
    """The file's row groups, after checking that it has the columns of `read_schema`, with their types."""
    footer = read_footer(store, file)
    schema = footer.schema.to_arrow_schema()
    resolve(config, schema, where=file.uri)
    for field in read_schema:
        if field.name not in schema.names:
            raise ConfigError(
                f"Column `{field.name}` of the first file is missing here",
                where=file.uri,
                todo="Write the files with one schema, or leave the column out with `input.carry`.",
            )
        if schema.field(field.name).type != field.type:
            raise ConfigError(
                f"Column `{field.name}` is {schema.field(field.name).type} here and {field.type} in the first file",
                where=file.uri,
                todo="Write the files with one schema, or run them as two jobs.",
            )
    chunks = [
        i for i in range(footer.num_columns) if footer.schema.column(i).path.split(".", 1)[0] in read_schema.names
    ]
    out = []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        num_bytes = sum(group.column(i).total_uncompressed_size for i in chunks)
        out.append(plan.RowGroup(file.uri, file.etag, file.size, number, group.num_rows, num_bytes))
    return out
