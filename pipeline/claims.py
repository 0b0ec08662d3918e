"""Which input file belongs to which run of an incremental job: the claims below the root of its outputs.

    claims/000012.json      the files of run 12, each with its ETag, and the job as it was
    runs/000012/            what run 12 leaves behind, a run's folder like any other

A file is known by its URI and ETag, so one that was replaced is a new file. The files that are taken are those of all
claims together. Claims are numbered, and a new one is put only where none stands and after all before it were read: so of
two that are made at the same moment one is refused, and whoever made it looks again. Who writes a claim holds the lease of
its run's folder, which also keeps two apart on stores that ignore conditions (see `pipeline.lease`).

Nothing here runs anything; `jobs.incremental` does.
"""

import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.facts import now
from pipeline.lease import NAME as LEASE_NAME
from pipeline.storage import CONCURRENCY, FileInfo, Store, is_partial

FOLDER, RUNS = "claims", "runs"
SCHEMA_VERSION = 1

FileKey = tuple[str, str]
"""URI and ETag."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The files of one run, and the job (as plain data) for which they were taken. A run without files is no run."""

    number: int
    files: tuple[FileInfo, ...]
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's folder below `runs/`, such as `000012`."""
        return f"{self.number:06d}"


def keys_of(files: Iterable[FileInfo]) -> set[FileKey]:
    return {(f.uri, f.etag) for f in files}


def new_files(listed: Iterable[FileInfo], claims: Iterable[Claim]) -> list[FileInfo]:
    """The files that no claim names with their present ETag, in the order given."""
    taken = {key for claim in claims for key in keys_of(claim.files)}
    return [f for f in listed if (f.uri, f.etag) not in taken]


def misclaimed(claims: Sequence[Claim], planned: Mapping[int, Collection[FileKey]], runs: Collection[str]) -> list[str]:
    """What is wrong between claims and runs, one sentence each: a file that is claimed twice, a claimed file that its run
    does not plan or a planned one that it did not claim, a run without a claim.

    `planned` holds the files that each run which has a plan goes through, files without rows included; `runs` the names
    below `runs/`.
    """
    times = Counter(key for claim in claims for key in keys_of(claim.files))
    found = [f"{uri} (ETag {etag}) is claimed by {count} runs" for (uri, etag), count in times.items() if count > 1]
    for claim in claims:
        if claim.number in planned:
            own, theirs = keys_of(claim.files), set(planned[claim.number])
            found += [f"run {claim.name} claims {uri} (ETag {etag}) and does not plan it" for uri, etag in own - theirs]
            found += [f"run {claim.name} plans {uri} (ETag {etag}) and does not claim it" for uri, etag in theirs - own]
    return found + [f"run {name} has no claim" for name in sorted(set(runs) - {claim.name for claim in claims})]


class Ledger:
    """The claims below a root, and where their runs stand."""

    def __init__(self, root: str, store: Store) -> None:
        self.root, self.store = store.absolute(root), store

    def run_uri(self, number: int) -> str:
        return f"{self.root}/{RUNS}/{number:06d}"

    def run_names(self) -> list[str]:
        """The folders below `runs/`; one in which nothing but a lease was ever put is left out."""
        names = self.store.list_folders(f"{self.root}/{RUNS}")
        return [n for n in names if self.store.exists(f"{self.root}/{RUNS}/{n}/plan.parquet")]

    def is_finished(self, claim: Claim) -> bool:
        return not claim.files or self.store.exists(f"{self.run_uri(claim.number)}/_SUCCESS")

    def unfinished(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims whose runs are not finished, looked at side by side."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return [c for c, is_done in zip(claims, pool.map(self.is_finished, claims), strict=True) if not is_done]

    def is_begun(self, claim: Claim) -> bool:
        """Whether the run has a plan, by which it goes on."""
        return self.store.exists(f"{self.run_uri(claim.number)}/run.json")

    def read(self, known: Sequence[Claim] = ()) -> list[Claim]:
        """The claims in order, those in `known` as they were read before. A claim that a listing does not show is looked
        up by name, up to the first number that nobody has taken.

        Raises:
            ConfigError: a file is no claim.
        """
        claims = {claim.number: claim for claim in known}
        names = (f.uri.rsplit("/", 1)[-1] for f in self.store.list_folder(f"{self.root}/{FOLDER}"))
        listed = {int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()}
        wanted = sorted(listed - claims.keys())
        for number, data in zip(wanted, self.store.read_many([self._uri(n) for n in wanted]), strict=True):
            claims[number] = self._parsed(number, data)
        number, highest = 1, max(claims, default=0)
        while True:
            if number not in claims:
                if self.store.find_one(self._uri(number)) is not None:
                    claims[number] = self.read_one(number)
                elif number > highest:
                    break
            number += 1
        return [claims[number] for number in sorted(claims)]

    def read_one(self, number: int) -> Claim:
        return self._parsed(number, self.store.read(self._uri(number)))

    def claim(self, number: int, files: Sequence[FileInfo], config: Mapping[str, Any]) -> Claim | None:
        """Takes files for the run of this number; None if the number is taken. The caller has read all claims below it,
        none of which names any of the files, and holds the lease of the run's folder."""
        claim = Claim(number, tuple(files), config)
        return claim if self.store.put_if(self._uri(number), self._text(claim), None) else None

    def narrow(self, claim: Claim, files: Sequence[FileInfo]) -> Claim:
        """Gives up what is not among `files`. Only for a run without a plan, by who holds the lease of its folder."""
        narrowed = Claim(claim.number, tuple(files), claim.config)
        self.store.put(self._uri(claim.number), self._text(narrowed))
        return narrowed

    def check_root(self) -> None:
        """Raises `ConfigError` where the root, which has no claims yet, is somebody else's folder."""
        if self.store.exists(f"{self.root}/run.json"):
            raise ConfigError(
                "The output holds a run of a job that was not incremental",
                where=self.root,
                todo="Choose another output.uri.",
            )
        foreign = self.store.first_below(self.root, lambda name: name.startswith(LEASE_NAME) or is_partial(name))
        if foreign is not None and not self.read():  # another session may have begun here just now
            raise ConfigError(
                f"The output folder holds files that are not a run's, first {foreign}",
                where=self.root,
                todo="Choose an empty or new folder.",
            )

    def _uri(self, number: int) -> str:
        return f"{self.root}/{FOLDER}/{number:06d}.json"

    def _text(self, claim: Claim) -> bytes:
        files = [asdict(f) for f in claim.files]
        record = {"schema_version": SCHEMA_VERSION, "run": claim.name, "claim": uuid.uuid4().hex, "claimed_at": now()}
        return json.dumps({**record, "config": claim.config, "files": files}).encode()

    def _parsed(self, number: int, data: bytes) -> Claim:
        try:
            record = json.loads(data)
            return Claim(number, tuple(FileInfo(**f) for f in record["files"]), dict(record["config"]))
        except (ValueError, TypeError, KeyError):
            raise ConfigError(
                "This file is no claim of an incremental job", where=self._uri(number), todo="Restore it from a copy."
            ) from None


def is_root(uri: str, store: Store) -> bool:
    """Whether a folder is the root of an incremental job's outputs: it has claims, and no run of its own."""
    ledger = Ledger(uri, store)
    return bool(store.list_folder(f"{ledger.root}/{FOLDER}")) and not store.exists(f"{ledger.root}/run.json")
