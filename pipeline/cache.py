"""Answers that runs share: a folder of segments, each with the answers of one shard, found again by their requests' keys.

    <cache.uri>/<space>/<sha256 of the segment>.parquet

A space holds the answers of one model (by digest), one set of engine settings that change answers, and one shape of
answer. Segments are named by content and never change, so that any number of runs may write at the same time; a request
that stands in several has the same answer in each as far as anybody is concerned. What cannot be read is not there: a
cache may be slow or broken, and costs time and never a row.
"""

import contextlib
import hashlib
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import __version__, plan
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, HerdError
from pipeline.host.memo import Known
from pipeline.model import ModelRef
from pipeline.parquet import GarbledError, from_parquet, to_parquet
from pipeline.request import Completion
from pipeline.storage import CONCURRENCY, Store

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("request_sha256", pa.string()),
        ("run_id", pa.string()),
    ]
)
"""A segment. `key` is `Request.key`; `run_id` is the run that asked."""

SEGMENTS_AT_HAND = 64


def space(config: RunConfig, model: ModelRef) -> str:
    """The name of the space that a run's answers belong to.

    Raises:
        ConfigError: the model's weights have no digest, so that nobody could say which weights made an answer.
    """
    if config.engine.kind == "vllm" and model.weights_digest is None:
        raise ConfigError(
            "Answers can be shared only by runs of a model whose weights have a digest, and this one's have none",
            where="cache.uri",
            todo="Give the model as a folder or an s3:// address, or leave cache.uri out.",
        )
    settings = plan.answer_settings(config, model.digests)
    named = {key: settings[key] for key in ("digests", "engine", "answer")}
    named["made_by"] = __version__ if config.engine.kind == "echo" else None
    return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()[:32]


class AnswerCache:
    """One space. Its index is read once, when it is opened: 16 bytes of memory an answer."""

    def __init__(self, config: RunConfig, model: ModelRef) -> None:
        """Opens the space of a run whose job names a cache; reads nothing yet."""
        uri, storage = str(config.cache.uri), config.cache.storage
        self._store = Store(uri, storage, retry_s=0)
        self._folder = f"{self._store.absolute(uri)}/{space(config, model)}"
        self._segments: list[str] = []
        self._hashes = np.empty(0, np.uint64)
        self._places = np.empty((0, 2), np.int32)
        self._at_hand: OrderedDict[int, list[tuple[Any, ...]]] = OrderedDict()

    def is_empty(self) -> bool:
        """Whether nobody has kept anything yet, from one listing. Raises as `read_index`."""
        return not self._listed()

    def _listed(self) -> list[str]:
        return [f.uri for f in self._store.list_folder(self._folder) if f.uri.endswith(".parquet")]

    def read_index(self) -> int:
        """Reads the keys of all segments; returns how many answers there are.

        Raises:
            StorageError: the folder is out of reach.
        """
        listed = self._listed()
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            read = list(pool.map(self._keys, listed))
        found = [(uri, keys) for uri, keys in zip(listed, read, strict=True) if len(keys)]
        self._segments = [uri for uri, _ in found]
        if not found:
            return 0
        hashes = np.concatenate([keys for _, keys in found])
        segment = np.repeat(np.arange(len(found)), [len(keys) for _, keys in found])
        row = np.concatenate([np.arange(len(keys)) for _, keys in found])
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._places = np.stack([segment[order], row[order]], axis=1).astype(np.int32)
        return len(self._hashes)

    def _keys(self, uri: str) -> Any:
        with contextlib.suppress(HerdError, GarbledError, ValueError):
            table = from_parquet(self._store, uri, lambda file: file.read(columns=["key"]))
            return np.fromiter((_hash(key) for key in table["key"].to_pylist()), np.uint64, table.num_rows)
        return np.empty(0, np.uint64)

    def recall(self, key: str) -> Known | None:
        """The answer to the request with this key, as it stood when the index was read."""
        number = _hash(key)
        at = int(np.searchsorted(self._hashes, number))
        while at < len(self._hashes) and self._hashes[at] == number:
            segment, row = self._places[at]
            rows = self._rows(int(segment))
            if int(row) < len(rows) and rows[row][0] == key:
                _, response, finish_reason, prompt_tokens, output_tokens, digest, run_id = rows[row]
                return Known(Completion(response, range(output_tokens), finish_reason, prompt_tokens), digest, run_id)
            at += 1
        return None

    def _rows(self, segment: int) -> list[tuple[Any, ...]]:
        if segment in self._at_hand:
            self._at_hand.move_to_end(segment)
            return self._at_hand[segment]
        rows: list[tuple[Any, ...]] = []
        with contextlib.suppress(HerdError, GarbledError, ValueError, KeyError):
            table = from_parquet(self._store, self._segments[segment], lambda file: file.read()).select(SCHEMA.names)
            rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
        self._at_hand[segment] = rows
        if len(self._at_hand) > SEGMENTS_AT_HAND:
            self._at_hand.popitem(last=False)
        return rows

    def keep(self, pieces: pa.Table, run_id: str) -> None:
        """Adds what a shard's rows were answered with, of those that were asked themselves and do not depend on chance.

        Raises:
            StorageError: the folder is out of reach.
        """
        wanted = pc.and_(pc.and_(pieces["stage"].is_null(), pieces["cached_from"].is_null()), pieces["key"].is_valid())
        rows = pieces.filter(wanted).select([name for name in SCHEMA.names if name != "run_id"])
        if not rows.num_rows:
            return
        rows = rows.append_column("run_id", pa.repeat(pa.scalar(run_id), rows.num_rows)).select(SCHEMA.names)
        data = to_parquet(rows.cast(SCHEMA), {})
        self._store.put_if(f"{self._folder}/{hashlib.sha256(data).hexdigest()}.parquet", data, None)


def _hash(key: str) -> np.uint64:
    return np.uint64(int(key[:16], 16))
