"""Attempts at shards that sleep, die, run twice or outlive their session, stopped before any request that they make."""

import io
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import plan
from pipeline.books import PreparedRun, close
from pipeline.lease import NAME as LEASE_NAME
from pipeline.lease import FencedError, Holder, Token
from pipeline.output import LINEAGE, QUARANTINED_FIELDS, RUN_KEYS, SECONDS, Output, answered_fields
from pipeline.progress import Progress
from pipeline.verify import verify
from tests.unit.helpers import job
from tests.unit.memory_store import MemoryStore, Order, Worker

URI = "s3://bucket/out"
ROWS = 2
BLOCK = pa.schema(
    [
        *answered_fields(pa.string()),
        *QUARANTINED_FIELDS,
        pa.field("lineage", LINEAGE),
        pa.field(SECONDS, pa.float64()),
    ]
)
CONFIG = job()
NONE, SOME, ALL = frozenset[int](), frozenset({1}), frozenset(range(ROWS))
OUTCOMES = (NONE, SOME, ALL)
"""Rows of a shard that end in quarantine. What an attempt leaves depends on it: data alone, both files, or no data."""
PAIRS = ((SOME, SOME), (SOME, NONE), (SOME, ALL), (NONE, ALL), (ALL, NONE))
MAX_SESSIONS = 8


@cache
def block(shard: int, failed: frozenset[int], engine: str, rows: tuple[int, ...] = (0, 1)) -> pa.Table:
    made: list[dict[str, Any]] = []
    for row in rows:
        lineage = {"run_id": "run-1", "shard": shard, "row_group": shard, "row": row, "engine": engine, "attempt": 1}
        fate = (
            {"stage": "image", "error_type": "image_null", "message": engine, "attempts": 1}
            if row in failed
            else {"response": engine, "answer": engine, "prompt_tokens": 1, "output_tokens": 1}
        )
        made.append({**fate, "lineage": {**lineage, "created_at": datetime(2025, 6, 1, tzinfo=UTC)}, SECONDS: 1.0})
    return pa.Table.from_pylist(made, schema=BLOCK)


@cache
def places(file: bytes) -> list[tuple[int, int]]:
    """Shard and row of each row in a Parquet file."""
    rows = pq.ParquetFile(io.BytesIO(file)).read(["lineage.shard", "lineage.row"])["lineage"].to_pylist()
    return [(row["shard"], row["row"]) for row in rows]


class Run:
    """A planned run in a store, with the session that holds it."""

    def __init__(self, *, shards: int = 1, keeps_conditions: bool = True) -> None:
        self.store = MemoryStore(URI, keeps_conditions=keeps_conditions)
        self.output = Output(URI, self.store)
        planned = {name: [0] * shards for name in plan.SCHEMA.names}
        planned |= {"shard": [*range(shards)], "row_group": [*range(shards)], "num_rows": [ROWS] * shards}
        planned |= {"input_uri": ["in"] * shards, "input_etag": ["e"] * shards}
        self.table = pa.table(planned, plan.SCHEMA)
        self.output.put_table("plan.parquet", self.table, {})
        self.output.put_json("run.json", {**dict.fromkeys(RUN_KEYS, None), "run_id": "run-1", "sessions": []})
        self.token = Token("")
        self.num_sessions = self.num_attempts = 0

    def begin_session(self) -> None:
        self.num_sessions += 1
        self.token = Token(f"owner-{self.num_sessions}")
        self.output.put_json(LEASE_NAME, asdict(Holder(self.token.owner, "host", "boot", 1, "began", "since")))
        record = self.output.read_run()
        self.output.put_json("run.json", {**record, "sessions": [*record["sessions"], {}]})

    def release(self) -> None:
        self.store.remove(self.output.at(LEASE_NAME))

    def attempt(self, shard: int, failed: frozenset[int]) -> Worker:
        """The session's next attempt at a shard, as an engine actor makes it."""
        self.num_attempts += 1
        token, name = self.token, f"attempt {self.num_attempts}"
        rows = block(shard, failed, name)
        return Worker(name, lambda: self.output.commit(rows, "run-1", token))

    def merge(self, shard: int, rows: tuple[int, ...], failed: frozenset[int]) -> Worker:
        """A replay's attempt at rows of a shard that stands."""
        self.num_attempts += 1
        token, name = self.token, f"merge {self.num_attempts}"
        asked = block(shard, failed, name, rows)
        return Worker(name, lambda: self.output.merge(asked, "run-1", token, history=()))

    def closing(self) -> Worker:
        prepared = PreparedRun(
            *(CONFIG, None, self.output, "run-1", None, None, self.table, frozenset()),  # type: ignore[arg-type]
            lease=SimpleNamespace(token=self.token, fenced=lambda: FencedError("another's")),  # type: ignore[arg-type]
        )
        return Worker("close", lambda: close(prepared, Progress()))

    def pending(self) -> list[int]:
        return sorted(set(self.table["shard"].to_pylist()) - self.output.committed())

    def standing(self) -> dict[str, bytes]:
        """All that a reader may go by."""
        return {path: data for path, data in self.store.objects.items() if not path.endswith(LEASE_NAME)}

    def problems(self) -> list[str]:
        """What is wrong with a run that is closed."""
        found: list[str] = []
        records = self.output.records()
        named = {o["uri"]: o["etag"] for r in records for o in (r.data, r.quarantine) if o}
        stands = {
            f"{kind}/{f.uri.rpartition('/')[2]}": f.etag
            for kind in ("data", "quarantine")
            for f in self.store.list_folder(self.output.at(kind))
        }
        found += [
            f"{name} is not the object that its record names" for name in named if stands.get(name) != named[name]
        ]
        found += [f"{name} is not named" for name in stands.keys() - named]
        seen = Counter(
            place for name in named.keys() & stands for place in places(self.store.read(self.output.at(name)))
        )
        for shard, row in product(self.table["shard"].to_pylist(), range(ROWS)):
            if seen.pop((shard, row), 0) != 1:
                found.append(f"row {row} of shard {shard} does not stand once")
        found += [f"row {place} is not planned" for place in seen]
        return found


def finish(run: Run, *, failed: frozenset[int] = SOME) -> None:
    """Sessions that nothing disturbs, until one has closed the run and given its lease back."""
    for _ in range(MAX_SESSIONS):
        run.begin_session()
        for shard in run.pending():
            run.attempt(shard, failed).run()
        closing = run.closing()
        closing.run()
        run.release()
        if closing.error is None:
            return
    raise AssertionError("the run is never closed")


def asleep(run: Run, worker: Worker, steps: int) -> bool:
    """Lets a worker make so many requests; false if it was done before."""
    for _ in range(steps):
        if worker.is_done:
            return False
        worker.step()
    return not worker.is_done


def wakes_in_vain(run: Run, *sleepers: Worker) -> list[str]:
    """What is wrong with a closed run, before and after those wake who slept through its end."""
    wrong = [f"closed: {p}" for p in run.problems()]
    before = run.standing()
    for worker in sleepers:
        worker.run()
    after = run.standing()
    changed = sorted(path for path in before.keys() | after if before.get(path) != after.get(path))
    return (
        wrong + [f"changed: {path}" for path in changed] + [f"after: {p}" for p in (run.problems() if changed else ())]
    )


# ---- a writer that sleeps


@pytest.mark.parametrize("is_contested", [False, True])
@pytest.mark.parametrize("end", ["overtaken", "released", "lost"])
def test_a_writer_that_slept_through_the_close_changes_nothing(end: str, is_contested: bool) -> None:
    """`overtaken`: its session was; `released`: its session gave the lease back; `lost`: its session went on without it."""
    wrong: dict[str, list[str]] = {}
    for slept, final in PAIRS:
        for steps in range(40):
            run = Run()
            run.begin_session()
            if is_contested:
                run.attempt(0, ALL).kill()
            sleeper = run.attempt(0, slept)
            if not asleep(run, sleeper, steps):
                break
            if end == "lost":
                run.attempt(0, final).run()
                closing = run.closing()
                closing.run()
                run.release()
                if closing.error:
                    finish(run, failed=final)
            else:
                if end == "released":
                    run.release()
                finish(run, failed=final)
            if found := wakes_in_vain(run, sleeper):
                wrong[f"{len(slept)} failed, slept after {steps}, then {len(final)} failed"] = found
    assert wrong == {}


def test_two_writers_that_slept_through_the_close_change_nothing() -> None:
    """A shard begun three times in one session, by a first attempt and a second that both stop somewhere."""
    wrong: dict[str, list[str]] = {}
    for first, second, final in ((SOME, SOME, SOME), (NONE, SOME, ALL)):
        for one, other in product((3, 5, 7, 9), range(2, 16, 2)):
            run = Run()
            run.begin_session()
            sleepers = run.attempt(0, first), run.attempt(0, second)
            for sleeper, steps in zip(sleepers, (one, other), strict=True):
                asleep(run, sleeper, steps)
            run.attempt(0, final).run()
            closing = run.closing()
            closing.run()
            run.release()
            if closing.error:
                finish(run, failed=final)
            if found := wakes_in_vain(run, *(s for s in sleepers if not s.is_done)):
                wrong[f"{len(first)} failed, {one} steps; {len(second)} failed, {other} steps"] = found
    assert wrong == {}


@pytest.mark.parametrize("end", ["overtaken", "released"])
def test_a_replay_that_slept_through_the_close_changes_nothing(end: str) -> None:
    """What comes after it replays another choice of rows, or answers the shard as a whole where it has no record."""
    wrong: dict[str, list[str]] = {}
    for asked, healed in product(((1,), (0, 1)), (NONE, SOME)):
        for steps in range(1, 40):
            run = Run()
            finish(run, failed=ALL)
            run.begin_session()
            sleeper = run.merge(0, (0, 1), NONE)
            if not asleep(run, sleeper, steps):
                break
            if end == "released":
                run.release()
            run.begin_session()
            if run.output.committed():
                run.merge(0, asked, healed).run()
            closing = run.closing()
            closing.run()
            run.release()
            if closing.error:
                finish(run, failed=healed)
            if found := wakes_in_vain(run, sleeper):
                wrong[f"{asked}, {len(healed)} failed, slept after {steps}"] = found
    assert wrong == {}


@pytest.mark.parametrize("steps", range(1, 30))
def test_a_replay_that_dies_anywhere_leaves_a_run_that_can_be_finished(steps: int) -> None:
    run = Run()
    finish(run)
    run.begin_session()
    replay = run.merge(0, (1,), NONE)
    asleep(run, replay, steps)
    replay.kill()
    again = run.merge(0, (1,), NONE)
    asleep(run, again, steps // 2)
    again.kill()
    finish(run)
    assert run.problems() == []


def test_a_close_that_slept_through_a_replay_changes_nothing() -> None:
    wrong: dict[int, list[str]] = {}
    for steps in range(1, 40):
        run = Run()
        run.begin_session()
        run.attempt(0, ALL).run()
        sleeper = run.closing()
        if not asleep(run, sleeper, steps):
            break
        run.begin_session()
        run.store.remove(run.output.at("_SUCCESS"))
        run.merge(0, (0, 1), NONE).run()
        run.closing().run()
        run.release()
        found = wakes_in_vain(run, sleeper)
        if found or not verify(run.output).is_complete:
            wrong[steps] = [*found, *verify(run.output).problems]
    assert wrong == {}


# ---- many of them at once


class Schedule:
    """Choices, read from bytes; when they are used up, always the first."""

    def __init__(self, choices: bytes) -> None:
        self._choices = iter(choices)
        self.is_over = False

    def pick(self, among: int) -> int:
        choice = next(self._choices, None)
        if choice is None:
            self.is_over = True
            return 0
        return choice % among


def storm(run: Run, schedule: Schedule) -> list[Worker]:
    """Sessions that begin, are overtaken or give up, and attempts of theirs that sleep, die and lose replies, while the
    schedule lasts; gives those who still sleep."""
    workers: list[Worker] = []
    shards = run.table.num_rows
    run.begin_session()
    while not schedule.is_over:
        workers = [w for w in workers if not w.is_done]
        what = schedule.pick(16)
        if (what == 1 and len(workers) < 6) or not workers:
            workers.append(run.attempt(schedule.pick(shards), OUTCOMES[schedule.pick(3)]))
        elif what == 2:
            if schedule.pick(2):
                run.release()
            run.begin_session()
        elif what == 3:
            workers[schedule.pick(len(workers))].kill()
        elif what == 4:
            workers[schedule.pick(len(workers))].step(Order.LOSE_REPLY)
        else:
            asleep(run, workers[schedule.pick(len(workers))], 1 + schedule.pick(8))
    return [w for w in workers if not w.is_done]


def calm(run: Run, schedule: Schedule, sleepers: list[Worker], *, is_close_alone: bool) -> None:
    """Sessions until one has closed the run. Those who sleep wake now and then for a request, unless `is_close_alone`
    while the books are closed."""

    def together(main: list[Worker], others: list[Worker]) -> None:
        while working := [w for w in main if not w.is_done]:
            awake = [w for w in others if not w.is_done]
            among = awake if awake and schedule.pick(12) == 1 else working
            among[schedule.pick(len(among))].step()

    for _ in range(MAX_SESSIONS):
        if schedule.pick(2):
            run.release()
        run.begin_session()
        together([run.attempt(shard, OUTCOMES[schedule.pick(3)]) for shard in run.pending()], sleepers)
        closing = run.closing()
        together([closing], [] if is_close_alone else sleepers)
        if closing.error is None:
            return
    raise AssertionError("the run is never closed")


schedules = st.binary(min_size=40, max_size=200).map(Schedule)


@settings(max_examples=160, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(schedules)
def test_whatever_sleeps_or_dies_every_row_stands_once_and_stays(schedule: Schedule) -> None:
    run = Run(shards=1 + schedule.pick(2))
    sleepers = storm(run, schedule)
    try:
        calm(run, schedule, sleepers, is_close_alone=False)
        run.release()
        assert wakes_in_vain(run, *(s for s in sleepers if not s.is_done)) == [], run.store.log
        assert verify(run.output).is_complete
    finally:
        for sleeper in sleepers:
            sleeper.kill()


@settings(max_examples=80, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(schedules)
def test_close_blesses_nothing_wrong_where_the_store_keeps_no_conditions(schedule: Schedule) -> None:
    run = Run(shards=1 + schedule.pick(2), keeps_conditions=False)
    sleepers = storm(run, schedule)
    try:
        calm(run, schedule, sleepers, is_close_alone=True)
        assert run.problems() == [], run.store.log
        assert verify(run.output).is_complete
    finally:
        for sleeper in sleepers:
            sleeper.kill()
