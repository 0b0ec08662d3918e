"""What can go wrong, in two kinds: a run that cannot go on, and a row that cannot be answered.

A `HerdError` is one paragraph for a person: what is wrong, where, and what to do. A `RowError` never leaves the shard it
happened in: it becomes a row of the quarantine.
"""

import contextlib
from collections.abc import Iterator
from enum import StrEnum


class HerdError(Exception):
    """A run that cannot start or go on. `str()` gives the paragraph; `exit_code` is the command's exit status."""

    exit_code = 4

    def __init__(self, what: str, *, where: str | None = None, todo: str | None = None) -> None:
        self.what, self.where, self.todo = what, where, todo
        sentence = f"{what} ({where})" if where else what
        super().__init__(f"{sentence.rstrip('.')}.{f' {todo}' if todo else ''}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.todo)


def _rebuild(kind: type[HerdError], what: str, where: str | None, todo: str | None) -> HerdError:
    return kind(what, where=where, todo=todo)


class ConfigError(HerdError, ValueError):
    """The job as given cannot run: an unknown key, a missing column, an output that holds another run."""

    exit_code = 2


class StorageError(HerdError):
    """A bucket, file or folder that is missing, forbidden or out of reach. Before the run starts it is the user's
    to mend, and the command exits as for a bad configuration; in mid-run the run stops, resumable."""


class NoFilesError(StorageError):
    """A folder or pattern of inputs that is in reach and names no file."""


@contextlib.contextmanager
def before_the_run() -> Iterator[None]:
    """Faults of storage before a run has started are the user's to mend: they exit as a bad configuration does."""
    try:
        yield
    except StorageError as e:
        e.exit_code = 2
        raise


class InputChangedError(HerdError):
    """An input file is no longer the one that was planned."""


class EngineStartError(HerdError):
    """An engine could not start with the given model and settings."""


class Stage(StrEnum):
    """Where on its way a row failed."""

    IMAGE = "image"
    RENDER = "render"
    ENGINE = "engine"
    ANSWER = "answer"


class RowError(Exception):
    """One row that cannot be answered.

    `error_type` is a stable snake_case name to group and filter by; the message is for people and may hold values.
    """

    def __init__(self, stage: Stage, error_type: str, message: str) -> None:
        self.stage, self.error_type = stage, error_type
        # a message may quote a row, and rows hold half characters that no file can
        self.message = message.encode("utf-8", "replace").decode()
        super().__init__(self.message)
