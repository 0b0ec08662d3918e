"""Sessions of one incremental job, stopped before any request that they make, killed, and run side by side."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.incremental import new_run, unfinished_runs
from pipeline.claims import Claim, FileKey, Ledger, is_root, keys_of, misclaimed, new_files
from pipeline.config import StorageConfig
from pipeline.errors import ConfigError, HerdError
from pipeline.lease import FencedError
from pipeline.storage import FileInfo, Store
from tests.unit.memory_store import MemoryStore, Order, Worker

ROOT = "s3://bucket/out"


def file(name: str, etag: str = "1") -> FileInfo:
    return FileInfo(name, 10, etag)


def claim(number: int, *files: FileInfo) -> Claim:
    return Claim(number, files, {})


# ---- rules


def test_new_files_are_those_of_no_claim_with_their_present_etag() -> None:
    listed = [file("a"), file("b", "2"), file("c")]
    assert new_files(listed, [claim(1, file("a")), claim(2, file("b", "1"))]) == [file("b", "2"), file("c")]
    assert new_files(listed, []) == listed


def test_claims_that_agree_with_their_runs_are_no_problem() -> None:
    claims = [claim(1, file("a")), claim(2, file("a", "2"), file("b"))]
    planned = {1: {("a", "1")}, 2: {("a", "2"), ("b", "1")}}
    assert misclaimed(claims, planned, ["000001", "000002"]) == []
    assert misclaimed(claims, {1: planned[1]}, ["000001"]) == []  # the second is not begun yet


@pytest.mark.parametrize(
    ("claims", "planned", "sentence"),
    [
        ([claim(1, file("a")), claim(2, file("a"))], {}, "a (ETag 1) is claimed by 2 runs"),
        ([claim(1, file("a"))], {1: set()}, "run 000001 claims a (ETag 1) and does not plan it"),
        ([claim(1)], {1: {("a", "1")}}, "run 000001 plans a (ETag 1) and does not claim it"),
    ],
)
def test_claims_that_do_not_agree_are_a_problem(
    claims: list[Claim], planned: dict[int, set[FileKey]], sentence: str
) -> None:
    assert misclaimed(claims, planned, []) == [sentence]


def test_run_without_a_claim_is_a_problem() -> None:
    assert misclaimed([claim(2, file("a"))], {}, ["000001", "000002"]) == ["run 000001 has no claim"]


# ---- the ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    uri = str(tmp_path / "out")
    return Ledger(uri, Store(uri, StorageConfig()))


def test_ledger_reads_what_was_claimed(ledger: Ledger) -> None:
    first = ledger.claim(1, [file("a"), file("b")], {"name": "x"})
    assert first == Claim(1, (file("a"), file("b")), {"name": "x"})
    assert ledger.claim(2, [file("c")], {}) is not None
    assert ledger.claim(2, [file("d")], {}) is None
    assert [keys_of(c.files) for c in ledger.read()] == [{("a", "1"), ("b", "1")}, {("c", "1")}]
    assert is_root(ledger.root, ledger.store)


def test_ledger_equal_claims_of_two_sessions_are_two(ledger: Ledger) -> None:
    assert ledger.claim(1, [file("a")], {}) is not None
    assert ledger.claim(1, [file("a")], {}) is None


def test_ledger_reads_on_from_what_it_knows(ledger: Ledger) -> None:
    ledger.claim(1, [file("a")], {})
    known = ledger.read()
    ledger.claim(2, [file("b")], {})
    assert [c.number for c in ledger.read(known)] == [1, 2]


def test_ledger_claim_that_was_removed_leaves_a_gap(ledger: Ledger) -> None:
    for number, name in enumerate("abc", 1):
        ledger.claim(number, [file(name)], {})
    ledger.store.remove(f"{ledger.root}/claims/000002.json")
    claims = ledger.read()
    assert [c.number for c in claims] == [1, 3]
    assert new_files([file("a"), file("b")], claims) == [file("b")]


def test_ledger_looks_up_claims_that_a_listing_does_not_show() -> None:
    store = MemoryStore(ROOT)
    ledger = Ledger(ROOT, store)
    for number, name in enumerate("abc", 1):
        ledger.claim(number, [file(name)], {})
    store.list_folder = lambda uri: []  # type: ignore[method-assign]
    assert [c.number for c in ledger.read()] == [1, 2, 3]


def test_ledger_file_that_is_no_claim_is_one_sentence(ledger: Ledger) -> None:
    ledger.store.put(f"{ledger.root}/claims/000001.json", b"{}")
    with pytest.raises(ConfigError, match=r"no claim of an incremental job .*000001\.json"):
        ledger.read()


def test_root_that_holds_a_run_or_other_files_is_refused(ledger: Ledger) -> None:
    ledger.check_root()
    ledger.store.put(f"{ledger.root}/photos/cow.png", b"x")
    with pytest.raises(ConfigError, match=r"files that are not a run's, first .*cow\.png"):
        ledger.check_root()
    ledger.store.put(f"{ledger.root}/run.json", b"{}")
    with pytest.raises(ConfigError, match="a job that was not incremental"):
        ledger.check_root()


def test_root_where_another_session_claimed_just_now_is_fine(ledger: Ledger) -> None:
    ledger.claim(1, [file("a")], {})
    ledger.check_root()


# ---- the model


class World:
    """Input files that come and change, a root, and sessions of the job. Leases are perfect here: they are tested apart
    (`test_lease`), so that a store that ignores conditions does as well."""

    def __init__(self, *, keeps_conditions: bool) -> None:
        self.store = MemoryStore(ROOT, keeps_conditions=keeps_conditions)
        self.ledger = Ledger(ROOT, self.store)
        self.now: dict[str, str] = {}
        self.holders: dict[int, Worker] = {}
        self.sessions: list[Worker] = []

    def listed(self) -> list[FileInfo]:
        return [file(name, etag) for name, etag in sorted(self.now.items())]

    def add(self) -> None:
        self.now[f"f{len(self.now)}"] = "1"

    def replace(self, number: int) -> None:
        if self.now:
            name = sorted(self.now)[number % len(self.now)]
            self.now[name] = str(int(self.now[name]) + 1)

    def start(self) -> Worker:
        hands = ModelHands(self)
        worker = Worker(f"session {len(self.sessions)}", lambda: self._session(hands))
        hands.worker = worker
        self.sessions.append(worker)
        return worker

    def _session(self, hands: "ModelHands") -> list[Any]:
        outcomes = list(unfinished_runs(self.ledger, self.ledger.read(), hands))
        return [*outcomes, new_run(self.ledger, self.ledger.read(), self.listed(), {}, hands)]

    def planned(self) -> dict[int, set[FileKey]]:
        runs = {p.split("/")[-2]: d for p, d in self.store.objects.items() if p.endswith("/run.json")}
        return {int(name): {tuple(key) for key in json.loads(data)} for name, data in runs.items()}

    @property
    def done(self) -> list[tuple[int, FileKey]]:
        """Run, URI and ETag of each file that stands in an output."""
        found = [(p.split("/"), data) for p, data in self.store.objects.items() if "/commits/" in p]
        return [(int(parts[-3]), (parts[-1], data.decode())) for parts, data in found]

    def check(self) -> None:
        """What holds at any moment."""
        assert all(n == 1 for n in Counter(key for _, key in self.done).values()), self.done
        claims, planned = self.ledger.read(), self.planned()
        assert misclaimed(claims, planned, [f"{n:06d}" for n in planned]) == []
        assert all(key in planned[number] for number, key in self.done)


class ModelHands:
    """A run that does one file after the other, and remembers in the store which it has done."""

    worker: Worker

    def __init__(self, world: World) -> None:
        self.world = world

    def take(self, number: int) -> "ModelHands.Lease":
        holder = self.world.holders.get(number)
        if holder is not None and not holder.is_done:
            raise FencedError(f"{holder.name} has it")
        self.world.holders[number] = self.worker
        return ModelHands.Lease(self, number)

    class Lease:
        def __init__(self, hands: "ModelHands", number: int) -> None:
            self._hands, self._number = hands, number

        def release(self) -> None:
            if self._hands.world.holders.get(self._number) is self._hands.worker:
                del self._hands.world.holders[self._number]

    def begin(self, claim: Claim, lease: Any) -> Any:
        uri = self.world.ledger.run_uri(claim.number)
        self.world.store.put(f"{uri}/run.json", json.dumps([[f.uri, f.etag] for f in claim.files]).encode())
        return self.go_on(claim, lease)

    def go_on(self, claim: Claim, lease: Any) -> Any:
        uri, store = self.world.ledger.run_uri(claim.number), self.world.store
        left = []
        for one in claim.files:
            if store.find_one(f"{uri}/commits/{one.uri}") is None:
                if self.world.now[one.uri] != one.etag:
                    left.append(one)
                    continue
                store.put(f"{uri}/commits/{one.uri}", one.etag.encode())
        if left:
            raise HerdError("files changed since they were planned")
        store.put(f"{uri}/_SUCCESS", b"done")

    def standing(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        return [f for f in files if self.world.now[f.uri] == f.etag]


actions = st.lists(
    st.one_of(
        st.just(("add", 0)),
        st.just(("start", 0)),
        st.tuples(st.just("step"), st.integers(0, 2)),
        st.tuples(st.just("steps"), st.integers(0, 2)),
        st.tuples(st.just("lose reply"), st.integers(0, 2)),
        st.tuples(st.just("kill"), st.integers(0, 2)),
        st.tuples(st.just("replace"), st.integers(0, 5)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("keeps_conditions", [True, False])
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions)
def test_each_file_is_done_once_whoever_dies_and_whatever_runs_beside(
    keeps_conditions: bool, wanted: list[tuple[str, int]]
) -> None:
    world = World(keeps_conditions=keeps_conditions)
    world.add()
    for what, number in wanted:
        living = [s for s in world.sessions if not s.is_done]
        chosen = living[number % len(living)] if living else None
        match what:
            case "add":
                world.add()
            case "replace":
                world.replace(number)
            case "start" if len(living) < 3:
                world.start()
            case "step" if chosen:
                chosen.step()
            case "steps" if chosen:
                for _ in range(8):
                    if not chosen.is_done:
                        chosen.step()
            case "lose reply" if chosen:
                chosen.step(Order.LOSE_REPLY)
            case "kill" if chosen:
                chosen.kill()
    for session in world.sessions:
        if not session.is_done:
            session.run()
        assert session.error is None or isinstance(session.error, FencedError)
    world.check()
    last = world.start()
    last.run()
    assert last.error is None
    world.check()
    done = {key for _, key in world.done}
    assert set(world.now.items()) <= done
    unfinished = world.ledger.unfinished(world.ledger.read())
    assert all(keys_of(c.files) - done - set(world.now.items()) for c in unfinished)  # only what was replaced is left


@pytest.mark.parametrize("steps", range(40))
def test_session_that_dies_anywhere_is_taken_up_by_the_next(steps: int) -> None:
    world = World(keeps_conditions=True)
    world.add()
    world.add()
    dying = world.start()
    for _ in range(steps):
        if not dying.is_done:
            dying.step()
    if not dying.is_done:
        dying.kill()
    world.add()
    nexts = world.start()
    nexts.run()
    world.check()
    assert sorted(key for _, key in world.done) == sorted(world.now.items())
    assert world.ledger.unfinished(world.ledger.read()) == []


@pytest.mark.parametrize("keeps_conditions", [True, False])
def test_two_sessions_at_any_point_of_each_other_do_each_file_once(keeps_conditions: bool) -> None:
    for first, second in product(range(25), repeat=2):
        world = World(keeps_conditions=keeps_conditions)
        world.add()
        sessions = [world.start()]
        for _ in range(first):
            if not sessions[0].is_done:
                sessions[0].step()
        world.add()
        sessions.append(world.start())
        for _ in range(second):
            if not sessions[1].is_done:
                sessions[1].step()
        for session in sessions:
            if not session.is_done:
                session.run()
        world.check()
        errors = [s.error for s in sessions if s.error is not None]
        # one may have stopped right before its claim, and the other gives up after a while
        assert all(isinstance(e, FencedError) for e in errors) and len(errors) < 2
        if not errors:
            assert sorted(key for _, key in world.done) == sorted(world.now.items()), (first, second)


def test_session_finds_that_another_has_just_taken_the_number() -> None:
    world = World(keeps_conditions=True)
    world.add()
    first = world.start()
    while first not in world.holders.values():
        first.step()
    first.step()  # it has looked whether its claim is new
    second = world.start()
    for _ in range(10):
        second.step()
    first.run()
    second.run()
    assert (first.error, second.error) == (None, None)
    world.check()


def test_session_leaves_a_living_run_its_files_and_takes_what_is_new() -> None:
    world = World(keeps_conditions=True)
    world.add()
    first = world.start()
    while not world.planned():
        first.step()
    world.add()
    second = world.start()
    second.run()
    left, new = second.result
    assert (left.exit_code, left.finished) == (0, None)
    assert "Left to the session that has it" in left.words
    assert new.name == "000002"
    first.run()
    assert sorted(world.done) == [(1, ("f0", "1")), (2, ("f1", "1"))]


def test_session_with_nothing_new_writes_nothing() -> None:
    world = World(keeps_conditions=True)
    world.add()
    world.start().run()
    stood = dict(world.store.objects)
    again = world.start()
    again.run()
    assert again.result == [None]
    assert world.store.objects == stood


def test_file_replaced_before_its_run_was_planned_goes_to_a_new_run() -> None:
    world = World(keeps_conditions=True)
    world.add()
    world.add()
    dying = world.start()
    while not world.ledger.read():
        dying.step()
    dying.kill()
    world.replace(0)
    world.start().run()
    assert sorted(world.done) == [(1, ("f1", "1")), (2, ("f0", "2"))]
    assert [keys_of(c.files) for c in world.ledger.read()] == [{("f1", "1")}, {("f0", "2")}]


def test_run_that_cannot_be_finished_keeps_no_new_file_from_being_done() -> None:
    world = World(keeps_conditions=True)
    world.add()
    dying = world.start()
    while not world.planned():
        dying.step()
    dying.kill()
    world.replace(0)
    world.add()
    session = world.start()
    session.run()
    failed, new = session.result
    assert failed.exit_code == 4 and new.exit_code == 0
    assert sorted(world.done) == [(2, ("f0", "2")), (2, ("f1", "1"))]
