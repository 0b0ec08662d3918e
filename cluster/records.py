"""What earlier runs measured: speeds, lengths of answers and engine starts, from the records that they left.

A run that is under way tells by its `progress.json`. Speeds are those of one engine, over its own window.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import books
from pipeline.config import RunConfig, StorageConfig
from pipeline.errors import ConfigError, HerdError
from pipeline.live import read_live
from pipeline.output import Output
from pipeline.spread import Range
from pipeline.storage import Store

MIN_ROWS = 20
"""Rows of an engine from which its speed is taken; fewer say more of its start than of its speed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A run's figures. None: the run does not tell."""

    where: str
    rows_per_s: Range | None
    """Rows that one engine answered in a second: over all engines and sessions together, and of the slowest and the
    fastest."""
    prompt_tokens: float | None
    """Of a row that was asked, on average; so are `output_tokens`."""
    output_tokens: float | None
    start_s: Range | None
    """Seconds until an engine was ready."""
    rows: int
    """Rows that these figures are from."""


def read_records(uri: str, storage: StorageConfig, config: RunConfig) -> Measured:
    """The figures of the run in an output folder, for a job like `config`.

    Raises:
        ConfigError: there is no run, or it says nothing of this job: another model, accelerator or engine.
        StorageError: the folder is out of reach.
    """
    output = Output(uri, Store(uri, storage))
    begun, record = books.reopen(uri, output.store)
    if differences := list(_differences(begun, record, config)):
        raise ConfigError(
            f"The run there says nothing of this job: {'; '.join(differences)}",
            where=uri,
            todo="Name a run of the same model on the same kind of machine.",
        )
    return _measured(uri, record, read_live(output, str(record["run_id"])))


def earlier_sessions(config: RunConfig) -> Measured | None:
    """The figures of the job's own output, if it holds earlier sessions of the same job; None else."""
    try:
        found = read_records(config.output.uri, config.output.storage, config)
    except HerdError:
        return None
    return found if found.rows else None


def _differences(begun: RunConfig, record: Mapping[str, Any], config: RunConfig) -> Iterator[str]:
    pairs = {
        "engine": (begun.engine.kind, config.engine.kind),
        "accelerator": (begun.pool.accelerator or "CPU", config.pool.accelerator or "CPU"),
        "GPUs an engine": (begun.engine.num_gpus, config.engine.num_gpus),
    }
    if config.engine.kind == "vllm":
        named = {begun.model, record["model"]["name"], record["model"]["location"]}
        pairs["model"] = (begun.model, begun.model if config.model in named else config.model)
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            yield f"{name} {theirs} there, {ours} here"


def _measured(uri: str, record: Mapping[str, Any], live: Mapping[str, Any] | None) -> Measured:
    sessions = list(record["sessions"])
    if live is not None and "by_engine" not in sessions[-1]:
        sessions[-1] = live
    speeds, starts = [], []
    rows = seconds = prompt = output = 0.0
    for session in sessions:
        for name, view in (session.get("by_engine") or {}).items():
            here = (view["rows_per_s"] or 0) * view["window_s"]
            starts += [float(s) for s in [(session.get("engines") or {}).get(name, {}).get("start_s")] if s]
            if here < MIN_ROWS:
                continue
            speeds.append(view["rows_per_s"])
            rows, seconds = rows + here, seconds + view["window_s"]
            prompt += (view["prompt_tokens_per_s"] or 0) * view["window_s"]
            output += (view["output_tokens_per_s"] or 0) * view["window_s"]
    return Measured(
        uri,
        Range(min(speeds), rows / seconds, max(speeds)) if seconds else None,
        prompt / rows if prompt and rows else None,
        output / rows if output and rows else None,
        Range(min(starts), sum(starts) / len(starts), max(starts)) if starts else None,
        round(rows),
    )
