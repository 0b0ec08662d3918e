"""What happens in a run while it happens, in one small actor: attempts at shards, engines, totals, faults.

The ledger is for people and for bounding retries. It proves nothing: what is done is what has a commit record.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import ray

from pipeline.output import CommitRecord

MAX_KEPT = 20


@dataclass
class Progress:
    """Totals of this session, and what the run found at its start. `seconds` counts from the start of the session."""

    shards_total: int = 0
    shards_before: int = 0
    rows_total: int = 0
    rows_before: int = 0
    shards_done: int = 0
    rows_ok: int = 0
    rows_quarantined: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by `stage/error_type`."""
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    engine_deaths: int = 0
    events: list[str] = field(default_factory=list)
    failed_shards: dict[int, str] = field(default_factory=dict)
    engine_error: str | None = None

    @property
    def window_s(self) -> float:
        """The longest engine window of the session: from an engine's first admission to its latest answer."""
        return max((float(e.get("window_s", 0.0)) for e in self.engines.values()), default=0.0)

    @property
    def rows_per_s(self) -> float:
        """Rows that engines answered, over `window_s`; 0 before the first answer."""
        rows = sum(int(e.get("rows", 0)) for e in self.engines.values())
        return rows / self.window_s if self.window_s else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "window_s": self.window_s, "rows_per_s": round(self.rows_per_s, 1)}


class Ledger:
    """See the module. Made remote by `start_ledger`, so that tests can use it as it is."""

    def __init__(self, progress: Progress, max_shard_attempts: int) -> None:
        self._progress, self._max_attempts = progress, max_shard_attempts
        self._attempts: Counter[int] = Counter()
        self._started = time.monotonic()

    def begin(self, shard: int) -> int | None:
        """The number of the attempt that starts now, from 1; None if the shard has had all its attempts."""
        if self._attempts[shard] >= self._max_attempts:
            self.shard_failed(shard, f"its engine died in each of {self._max_attempts} attempts")
            return None
        self._attempts[shard] += 1
        return self._attempts[shard]

    def committed(self, record: CommitRecord) -> None:
        p = self._progress
        p.shards_done += 1
        p.rows_ok += record.rows_ok
        p.rows_quarantined += record.rows_quarantined
        p.prompt_tokens += record.tokens["prompt"]
        p.output_tokens += record.tokens["output"]
        for reason, count in record.reasons.items():
            p.reasons[reason] = p.reasons.get(reason, 0) + count
        self._attempts.pop(record.shard, None)

    def shard_failed(self, shard: int, message: str) -> None:
        self._progress.failed_shards[shard] = message

    def engine_ready(self, engine: str, facts: dict[str, Any]) -> None:
        self._progress.engines[engine] = facts

    def engine_figures(self, engine: str, figures: dict[str, float]) -> None:
        self._progress.engines[engine].update(figures)

    def engine_failed(self, message: str) -> None:
        self._progress.engine_error = message

    def engine_died(self, engine: str, message: str) -> None:
        self._progress.engine_deaths += 1
        self._progress.events = [*self._progress.events, f"{engine} died: {message}"][-MAX_KEPT:]

    def snapshot(self) -> Progress:
        now = time.monotonic()
        self._progress.seconds = now - self._started
        return self._progress


def start_ledger(progress: Progress, max_shard_attempts: int) -> Any:
    """A handle to a new ledger actor. It takes no CPU of its own."""
    return ray.remote(num_cpus=0)(Ledger).remote(progress, max_shard_attempts)
