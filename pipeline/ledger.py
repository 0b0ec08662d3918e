"""What happens in a run while it happens, in one small actor: attempts at shards, engines, totals, faults.

The ledger is for people and for bounding retries. It proves nothing: what is done is what has a commit record.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray

from pipeline.output import CommitRecord
from pipeline.progress import Progress

MAX_KEPT = 20


class Ledger:
    """See the module. Made remote by `start_ledger`, so that tests can use it as it is."""

    def __init__(self, progress: Progress, max_shard_attempts: int, earlier: Mapping[int, int]) -> None:
        self._progress, self._max_attempts, self._earlier = progress, max_shard_attempts, earlier
        self._attempts: Counter[int] = Counter()
        self._started = time.monotonic()
        self._starts = 0

    def begin(self, shard: int) -> int | None:
        """The number of the attempt that starts now, from 1 and counting those of earlier sessions that are known; None
        if the shard has had all its attempts of this session."""
        if self._attempts[shard] >= self._max_attempts:
            self.shard_failed(shard, f"its engine died in each of {self._max_attempts} attempts")
            return None
        self._attempts[shard] += 1
        return self._earlier.get(shard, 0) + self._attempts[shard]

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

    def engine_starting(self) -> int:
        """How many engines have begun to start since one was last ready, this one included."""
        self._starts += 1
        return self._starts

    def engine_ready(self, engine: str, facts: dict[str, Any]) -> None:
        self._progress.engines[engine] = facts
        self._starts = 0

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


def start_ledger(progress: Progress, max_shard_attempts: int, earlier: Mapping[int, int]) -> Any:
    """A handle to a new ledger actor. It takes no CPU of its own. `earlier` counts attempts by shard."""
    return ray.remote(num_cpus=0)(Ledger).remote(progress, max_shard_attempts, earlier)
