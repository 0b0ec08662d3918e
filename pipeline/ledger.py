"""What happens in a run while it happens, in one small actor: attempts at shards, engines, totals, faults.

The ledger is for people, for bounding retries and for telling engines to stop. It proves nothing: what is done is what
has a commit record. Should it be lost, Ray starts it again, and only figures and counts begin anew.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import HerdError
from pipeline.output import CommitRecord
from pipeline.progress import Progress

MAX_KEPT = 50


class Permit(Enum):
    """Whether a shard may be begun."""

    GO = "go"
    LATER = "later"
    """Not on this node, which is being drained."""
    NEVER = "never"
    """Not in this session: it is being stopped, the shard is committed, or it has had its attempts."""


class Ledger:
    """See the module. Made remote by `start_ledger`, so that tests can use it as it is."""

    def __init__(self, progress: Progress, max_shard_attempts: int, earlier: Mapping[int, int]) -> None:
        self._progress, self._max_attempts, self._earlier = progress, max_shard_attempts, earlier
        self._attempts: Counter[int] = Counter()
        self._in_flight: set[int] = set()
        self._committed: set[int] = set()
        self._draining: frozenset[str] = frozenset()
        self._is_stopping = False
        self._fault: HerdError | None = None
        self._started = time.monotonic()

    def begin(self, shard: int, node: str) -> tuple[Permit, int | None]:
        """Whether a shard may begin now on a node, and the number of the attempt: from 1, and counting those of earlier
        sessions that are known."""
        if self._is_stopping or shard in self._committed:
            return Permit.NEVER, None
        if node in self._draining:
            return Permit.LATER, None
        if self._attempts[shard] >= self._max_attempts:
            self.shard_failed(shard, f"the actor or node that had it was lost in each of {self._max_attempts} attempts")
            return Permit.NEVER, None
        self._attempts[shard] += 1
        self._in_flight.add(shard)
        return Permit.GO, self._earlier.get(shard, 0) + self._attempts[shard]

    def committed(
        self, record: CommitRecord, engine: str | None = None, figures: Mapping[str, float] | None = None
    ) -> None:
        """Takes a record that stands now, and the latest figures of the engine that answered it, if one did."""
        p = self._progress
        p.shards_done += 1
        p.rows_ok += record.rows_ok
        p.rows_quarantined += record.rows_quarantined
        p.prompt_tokens += record.tokens["prompt"]
        p.output_tokens += record.tokens["output"]
        p.reasons = dict(Counter(p.reasons) + Counter(record.reasons))
        self._attempts.pop(record.shard, None)
        self._in_flight.discard(record.shard)
        self._committed.add(record.shard)
        if engine is not None and figures is not None:
            self.engine_figures(engine, figures)

    def read(self, seconds: float, rows: int, num_bytes: int) -> None:
        """Takes note of a block that a task has read."""
        self._progress.read_s += seconds
        self._progress.rows_read += rows
        self._progress.bytes_read += num_bytes

    def shard_failed(self, shard: int, message: str) -> None:
        self._progress.failed_shards[shard] = message
        self._in_flight.discard(shard)

    def stop(self) -> None:
        """Lets no shard begin any more."""
        self._is_stopping = True

    def drain(self, nodes: Sequence[str]) -> None:
        """Lets no shard begin on these nodes."""
        for node in set(nodes) - self._draining:
            self.noted(f"node {node[:12]} is being drained; its engines finish what they have and move")
        self._draining = frozenset(nodes)

    def engines_wanted(self) -> None:
        """Takes note that the run has come to the work that engines do."""
        self._progress.wants_engines = True

    def engine_placed(self, engine: str, nodes: Sequence[str]) -> None:
        """Takes note that an engine has the resources it needs, on these nodes; it may not be ready for long."""
        self._progress.places[engine] = list(nodes)

    def engine_ready(self, engine: str, facts: dict[str, Any]) -> None:
        self._progress.engines.setdefault(engine, {}).update(facts)

    def engine_figures(self, engine: str, figures: Mapping[str, float]) -> None:
        """Takes an engine's latest figures, some or all of: `window_s`, `rows`, `busy_s`, `render_wait_s`, `rows_wait_s`
        (see `pipeline.engine.loop.Window`); `render_s`, of which `image_s` for images, and `parse_s`, summed over threads;
        `prepare_s`; `write_s`, of committing, summed over threads; `rows_reused`; what `Engine.gauges` names."""
        self._progress.engines.setdefault(engine, {}).update(figures)

    def run_failed(self, error: HerdError) -> None:
        """Takes the error that ends the run, from whoever meets it: on its way through Ray Data it would lose its words."""
        self._fault = self._fault or error

    def fault(self) -> HerdError | None:
        """The first error that was said to end the run."""
        return self._fault

    def engine_died(self, engine: str, error_type: str, message: str) -> None:
        self._progress.engine_deaths += 1
        self.noted(f"{engine or 'an engine'} {'hung' if error_type == 'engine_stall' else 'died'}: {message}")

    def noted(self, message: str) -> None:
        self._progress.events = [*self._progress.events, message][-MAX_KEPT:]

    def snapshot(self) -> Progress:
        self._progress.seconds = time.monotonic() - self._started
        self._progress.shards_in_flight = len(self._in_flight)
        return self._progress


def start_ledger(progress: Progress, max_shard_attempts: int, earlier: Mapping[int, int]) -> Any:
    """A handle to a new ledger actor, on the driver's own node, since neither is of use without the other. It takes no CPU
    of its own. `earlier` counts attempts by shard."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(**options)(Ledger).remote(progress, max_shard_attempts, earlier)
