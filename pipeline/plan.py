"""The plan: which slice of which file is which shard, and the fingerprint that a resume must match.

Pure: row groups in, shards out. Footers are read by `pipeline.footers`. A plan lives as one Arrow table, a row a shard,
so that its memory grows with row groups and never with rows.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config import RunConfig

SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("input_uri", pa.string()),
        ("input_etag", pa.string()),
        ("input_size", pa.int64()),
        ("row_group", pa.int32()),
        ("first_row", pa.int64()),
        ("num_rows", pa.int64()),
        ("num_bytes", pa.int64()),
    ]
)

# Engine arguments that say where and how fast an engine runs, not what it answers: a resume may change them.
RUNTIME_ENGINE_ARGS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "compilation_config",
        "data_parallel_size",
        "disable_log_stats",
        "distributed_executor_backend",
        "download_dir",
        "enable_chunked_prefill",
        "enable_expert_parallel",
        "enable_prefix_caching",
        "enforce_eager",
        "gpu_memory_utilization",
        "limit_mm_per_prompt",
        "load_format",
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_parallel_loading_workers",
        "mm_encoder_tp_mode",
        "mm_processor_cache_gb",
        "pipeline_parallel_size",
        "tensor_parallel_size",
    }
)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group as its footer tells. `num_bytes` counts the columns that are read, uncompressed."""

    input_uri: str
    input_etag: str
    input_size: int
    row_group: int
    num_rows: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `first_row` to `first_row + num_rows - 1` of one row group of one file, counted from 0."""

    shard: int
    input_uri: str
    input_etag: str
    input_size: int
    row_group: int
    first_row: int
    num_rows: int
    num_bytes: int

    @property
    def name(self) -> str:
        """The shard's part in object names, such as `000042`."""
        return f"{self.shard:06d}"


UNEVEN = 4
"""Times the mean bytes of a shard, beyond which a row group is cut further."""


def cut(groups: Iterable[RowGroup], *, max_rows: int, max_bytes: int) -> pa.Table:
    """Shards of at most `max_rows` rows and about `max_bytes` bytes, in the groups' order; a table of `SCHEMA`.

    A group is cut into equal parts that differ by at most one row. Empty groups give no shard. A row larger than
    `max_bytes` is a shard of its own.

    Shards that would hold more than `UNEVEN` times the mean bytes are cut into such of at most half of that: a run ends
    when its last shard does, one engine alone works on a shard, and bytes are what a footer tells of work. Cutting by the
    mean adds at most half as many shards again.
    """
    found = _as_table(groups)
    rows, num_bytes = found["num_rows"].to_numpy(), found["num_bytes"].to_numpy()
    parts = num_parts(rows, num_bytes, max_rows=max_rows, max_bytes=max_bytes)
    if parts.sum() and (mean := num_bytes.sum() / parts.sum()):
        is_uneven = num_bytes > UNEVEN * mean * parts
        finer = np.ceil(num_bytes / (UNEVEN / 2 * mean)).astype(np.int64)
        parts = np.where(is_uneven, np.minimum(rows, np.maximum(parts, finer)), parts)
    group = np.repeat(np.arange(found.num_rows), parts)
    part = np.arange(len(group)) - np.repeat(np.cumsum(parts) - parts, parts)
    first = rows[group] * part // parts[group]
    num_rows = rows[group] * (part + 1) // parts[group] - first
    made = {
        "shard": pa.array(np.arange(len(group)), pa.int32()),
        "first_row": pa.array(first, pa.int64()),
        "num_rows": pa.array(num_rows, pa.int64()),
        "num_bytes": pa.array((num_bytes[group] / rows[group] * num_rows).astype(np.int64), pa.int64()),
    }
    kept = found.take(group)
    return pa.table(
        [made.get(name, kept[name] if name in kept.column_names else None) for name in SCHEMA.names], SCHEMA
    )


def _as_table(groups: Iterable[RowGroup]) -> pa.Table:
    schema = pa.schema([SCHEMA.field(name) for name in RowGroup.__slots__])
    batches = []
    groups = iter(groups)
    while some := list(islice(groups, 10_000)):
        columns = zip(*map(attrgetter(*schema.names), some), strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def num_parts(num_rows: Any, num_bytes: Any, *, max_rows: int, max_bytes: int) -> Any:
    """Into how many shards a row group is cut: none when it is empty, and never more than it has rows. Takes numbers or
    NumPy arrays of them."""
    return np.minimum(num_rows, np.maximum(-(-num_rows // max_rows), -(-num_bytes // max_bytes)))


def shards_of(table: pa.Table) -> Iterator[Shard]:
    """The table's rows, a batch at a time."""
    for batch in table.to_batches(max_chunksize=10_000):
        for row in batch.to_pylist():
            yield Shard(**row)


def answer_settings(config: RunConfig, digests: dict[str, Any]) -> dict[str, Any]:
    """Every setting that can change an answer, as plain data: what two runs on one output must agree on."""
    engine_args = {k: v for k, v in config.engine.vllm_args.items() if k not in RUNTIME_ENGINE_ARGS}
    return {
        "input": {
            "uri": config.input.uri,
            "images": config.input.images,
            "carry": config.input.carry,
            "sampling": config.input.sampling,
            # named only where they are set: outputs of earlier versions do not name them
            **config.input.model_dump(include={"limit", "sample"}, exclude_none=True),
        },
        "prompt": config.prompt.model_dump(),
        "model": config.model,
        "digests": digests,
        "sampling": config.effective_sampling,
        "answer": config.answer.model_dump(exclude_none=True),
        "engine": {"kind": config.engine.kind, **engine_args},
        "shard": {"max_rows": config.shard.max_rows, "max_bytes": int(config.shard.max_bytes)},
        "images": config.render.images.model_dump(mode="json"),
    }


def fingerprint(settings: dict[str, Any], table: pa.Table) -> str:
    """`sha256:` over the answer settings and the inputs (URI, ETag, size, in order)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    seen: tuple[Any, ...] | None = None
    for batch in table.select(["input_uri", "input_etag", "input_size"]).to_batches(max_chunksize=10_000):
        for file in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if file != seen:
                digest.update(json.dumps(file).encode())
                seen = file
    return "sha256:" + digest.hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two settings differ, one `key: old -> new` each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]
