"""Reads the footers of the input files, many at a time, and turns them into row groups for the plan.

No data page is read. A file that is not Parquet, is cut short, or whose needed columns have other types than the first
file's is refused here, before any engine starts.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import plan
from pipeline.columns import Columns, resolve
from pipeline.config import InputConfig, RunConfig
from pipeline.errors import ConfigError, NoFilesError
from pipeline.parquet import GarbledError, from_parquet
from pipeline.part import part_of
from pipeline.storage import CONCURRENCY, FileInfo, Store


def list_inputs(config: InputConfig, *, may_be_empty: bool = False) -> list[FileInfo]:
    """The input's files, each once, in the order of `uri` and then by name.

    Raises:
        StorageError: an input that is out of reach, or, unless it `may_be_empty`, that names no file.
    """

    def find(uri: str) -> list[FileInfo]:
        try:
            return Store(uri, config.storage).find(uri)
        except NoFilesError:
            if may_be_empty:
                return []
            raise

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        listings = pool.map(find, config.uri)
        return list({f.uri: f for files in listings for f in files}.values())


def make_plan(config: RunConfig, files: Sequence[FileInfo] | None = None) -> tuple[Columns, pa.Schema, pa.Table]:
    """The job's columns, their Arrow schema, and its plan (`plan.SCHEMA`): over all of its input, or over these files of
    it, which may turn out to hold no rows.

    Raises:
        StorageError: an input that is missing or out of reach.
        ConfigError: an input that cannot serve the job, or that holds no rows.
    """
    sources = list_inputs(config.input) if files is None else files
    schema = read_footer(sources[0], config.input).schema.to_arrow_schema()
    columns = resolve(config, schema, where=sources[0].uri)
    read_schema = pa.schema([schema.field(name) for name in columns.read])

    def groups() -> Iterator[plan.RowGroup]:
        # a look at the first rows needs no other files' footers
        at_once = len(sources) if config.input.limit is None else CONCURRENCY
        rows = 0
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            for start in range(0, len(sources), at_once):
                some = sources[start : start + at_once]
                for found in pool.map(partial(row_groups, config=config, read_schema=read_schema), some):
                    yield from found
                    rows += sum(group.num_rows for group in found)
                if config.input.limit is not None and rows >= config.input.limit:
                    return

    table = plan.cut(groups(), max_rows=config.shard.max_rows, max_bytes=int(config.shard.max_bytes))
    if table.num_rows == 0 and files is None:
        raise ConfigError(f"The input has no rows in its {len(sources)} files", where=", ".join(config.input.uri))
    return columns, read_schema, part_of(table, config.input)


def read_footer(file: FileInfo, config: InputConfig) -> pq.FileMetaData:
    """The footer of a file.

    Raises:
        ConfigError: it is no Parquet file, or it is cut short.
        StorageError: it is out of reach.
    """
    try:
        return from_parquet(Store(file.uri, config.storage), file.uri, lambda parquet: parquet.metadata)
    except GarbledError as e:
        raise ConfigError(
            f"This is not a Parquet file, or it is cut short ({file.size:,} bytes): {e}",
            where=file.uri,
            todo="Write it again, or leave it out of `input.uri`.",
        ) from None


def row_groups(file: FileInfo, *, config: RunConfig, read_schema: pa.Schema) -> list[plan.RowGroup]:
    """The file's row groups, after checking that it has the columns of `read_schema`, with their types."""
    footer = read_footer(file, config.input)
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
