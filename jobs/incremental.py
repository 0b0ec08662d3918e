"""Incremental jobs: each run takes the input files that no earlier run has taken. Drives the claims of `pipeline.claims`.

A session first continues runs that are not finished and that no living session has, in their order: by their own plan where
they have one, as the present job would where they only have a claim. Then it takes what is new, all of it, as one new run.
What goes wrong with one run keeps no other from being tried; an interrupt does.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pyarrow.compute as pc

from cluster.models import resolve_model, with_profile
from jobs.jobfile import amended
from jobs.launch import ALONE, Finished, Launch, finish, say_if_close
from jobs.several import Outcome, attempted
from pipeline import books
from pipeline.claims import Claim, Ledger, new_files
from pipeline.config import OutputConfig, RunConfig, StorageConfig
from pipeline.config_errors import parse_config
from pipeline.engine.vllm_names import check_names
from pipeline.errors import ConfigError, HerdError, before_the_run
from pipeline.facts import find_git_revision
from pipeline.footers import list_inputs
from pipeline.lease import FencedError, Lease
from pipeline.model import ModelRef
from pipeline.plan import answer_settings
from pipeline.storage import CONCURRENCY, FileInfo, Store

MAX_TRIES = 10


class Held(Protocol):
    """A lease, as far as it matters here."""

    def release(self) -> None: ...


class Hands(Protocol):
    """What does the work. Each of the first three raises `HerdError` for a run that does not get to its end."""

    def begin(self, claim: Claim, lease: Any) -> Finished:
        """Plans and runs a claim's files."""

    def go_on(self, claim: Claim, lease: Any) -> Finished:
        """Continues a run by its plan."""

    def take(self, number: int) -> Held:
        """The lease of a run's folder.

        Raises:
            FencedError: a living session holds it.
        """

    def standing(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        """Those files that are still what they were."""


def unfinished_runs(ledger: Ledger, claims: Sequence[Claim], hands: Hands) -> Iterator[Outcome]:
    """Continues each run that is not finished, in turn, or says who has it."""
    for claim in ledger.unfinished(claims):
        outcome = _continued(ledger, claim, hands)
        if outcome is not None:
            yield outcome
            if outcome.was_interrupted:
                return


def _continued(ledger: Ledger, claim: Claim, hands: Hands) -> Outcome | None:
    """None where there turns out to be nothing to continue."""
    name, output = claim.name, ledger.run_uri(claim.number)
    try:
        lease = hands.take(claim.number)
    except FencedError as e:
        return Outcome(name, output, note=f"Left to the session that has it. {e.what}")
    try:
        claim = ledger.read_one(claim.number)  # whoever had the lease before may have given up files of it
        if ledger.is_finished(claim):
            return None
        if ledger.is_begun(claim):
            return attempted(name, output, partial(hands.go_on, claim, lease))
        standing = hands.standing(claim.files)
        if len(standing) < len(claim.files):
            claim = ledger.narrow(claim, standing)
        return attempted(name, output, partial(hands.begin, claim, lease)) if standing else None
    finally:
        lease.release()


def new_run(
    ledger: Ledger,
    claims: Sequence[Claim],
    listed: Sequence[FileInfo],
    config: dict[str, Any],
    hands: Hands,
) -> Outcome | None:
    """Takes the listed files that are in no claim and runs them; None where there are none.

    Raises:
        FencedError: other sessions keep beginning runs here, or one hangs while it does.
    """
    for tries in range(1, MAX_TRIES + 1):
        fresh = new_files(listed, claims)
        if not fresh:
            return None
        number = max((claim.number for claim in claims), default=0) + 1
        try:
            lease = hands.take(number)
        except FencedError:  # it is about to claim, or has claimed since the claims were read
            if tries == MAX_TRIES:
                raise
        else:
            try:
                claim = ledger.claim(number, fresh, config)
                if claim is not None:
                    return attempted(claim.name, ledger.run_uri(number), partial(hands.begin, claim, lease))
            finally:
                lease.release()
        claims = ledger.read(claims)
    raise FencedError("Other sessions keep beginning runs of this job", where=ledger.root, todo="Run it again.")


@dataclass(frozen=True)
class RayHands:
    """Runs on Ray for a job, whose output is the root. A run that has a plan goes on as it was begun, as `amend` has it."""

    ledger: Ledger
    config: RunConfig
    model: ModelRef
    amend: books.Amend
    launch: Launch

    def take(self, number: int) -> Lease:
        return Lease(self.ledger.run_uri(number), self.ledger.store, self.config.limits.lease_s)

    def begin(self, claim: Claim, lease: Lease) -> Finished:
        config = self.config.model_copy(update={"output": self._output(claim)})
        revision = find_git_revision(os.getcwd())
        with before_the_run():
            prepared = books.prepare(config, self.model, files=claim.files, lease=lease, git_revision=revision)
        return finish(prepared, self.launch)

    def go_on(self, claim: Claim, lease: Lease) -> Finished:
        output, revision = self._output(claim), find_git_revision(os.getcwd())
        with before_the_run():
            prepared = books.prepare_resume(
                output.uri, output.storage, resolve_model, amend=self.amend, lease=lease, git_revision=revision
            )
            self._refuse_if_stuck(claim, prepared)
        return finish(prepared, self.launch)

    def standing(self, files: Sequence[FileInfo]) -> list[FileInfo]:
        def stands(file: FileInfo) -> bool:
            return Store(file.uri, self.config.input.storage).find_one(file.uri) == file

        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return [file for file, still in zip(files, pool.map(stands, files), strict=True) if still]

    def _output(self, claim: Claim) -> OutputConfig:
        return self.config.output.model_copy(update={"uri": self.ledger.run_uri(claim.number)})

    def _refuse_if_stuck(self, claim: Claim, run: books.PreparedRun) -> None:
        """No engine is worth starting for files that are all others by now."""
        pending = set(pc.unique(run.pending["input_uri"]).to_pylist())
        left = [file for file in claim.files if file.uri in pending]
        if left and not self.standing(left):
            raise HerdError(
                f"{len(left)} files of this run are still to do, and none is what it was when it was planned, first "
                f"{left[0].uri}",
                where=run.output.uri,
                todo="Put them back; or remove this folder and its claim, "
                f"{self.ledger.root}/claims/{claim.name}.json, to have its files taken anew.",
            )


def run_incremental(config: RunConfig, launch: Launch = ALONE) -> Iterator[Outcome]:
    """Continues what is unfinished and runs what is new, and gives the outcome of each run when it has one; none at all
    where nothing is unfinished and nothing new.

    Raises:
        HerdError: the job cannot run, whatever its files, or its root cannot be used.
    """
    config = with_profile(config)
    check_names(config.engine, config.sampling)
    if config.engine.auto:
        raise ConfigError(
            "`engine: auto` chooses for one run, and an incremental job has many that must answer alike",
            where="engine",
            todo="Have `herd plan` choose once, and write its settings into the job.",
        )
    say_if_close(config)
    with before_the_run():
        ledger = Ledger(config.output.uri, Store(config.output.uri, config.output.storage))
        claims = ledger.read()
        if not claims:
            ledger.check_root()
        hands = RayHands(ledger, config, resolve_model(config), _as_now(config), launch)
    for outcome in unfinished_runs(ledger, claims, hands):
        yield outcome
        if outcome.was_interrupted:
            return
    with before_the_run():
        listed = list_inputs(config.input, may_be_empty=bool(claims))
        outcome_of_new = new_run(ledger, ledger.read(), listed, config.model_dump(mode="json"), hands)
    if outcome_of_new is not None:
        yield outcome_of_new


def resume_incremental(
    root: str, storage: StorageConfig, overrides: Sequence[str] = (), launch: Launch = ALONE
) -> Iterator[Outcome]:
    """Continues the unfinished runs below a root, and takes nothing new. A claim without a plan is run as the latest job
    would. Raises as `run_incremental`."""
    with before_the_run():
        ledger = Ledger(root, Store(root, storage))
        claims = ledger.read()
        config = parse_config(dict(claims[-1].config), where=f"{ledger.root}/claims/{claims[-1].name}.json")
        reach = storage if storage != StorageConfig() else config.output.storage
        config = amended(config.model_copy(update={"output": OutputConfig(uri=root, storage=reach)}), overrides)
        check_names(config.engine, config.sampling)
        hands = RayHands(ledger, config, resolve_model(config), lambda begun: amended(begun, overrides), launch)
    yield from unfinished_runs(ledger, claims, hands)


def _as_now(config: RunConfig) -> books.Amend:
    """A run that was begun earlier goes on with the job's present pool, limits and speed, unless its answers would be
    others."""

    def amend(begun: RunConfig) -> RunConfig:
        wanted = config.model_copy(update={"input": begun.input, "output": begun.output, "name": begun.name})
        return wanted if answer_settings(wanted, {}) == answer_settings(begun, {}) else begun

    return amend
