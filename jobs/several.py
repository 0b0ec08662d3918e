"""Several runs of one command, one after the other: what became of each, and the exit code of all."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from jobs.launch import Finished
from pipeline.errors import HerdError

BY_SEVERITY = (0, 3, 2, 4, 130)
"""Exit codes from the best to the worst: done, done with much in quarantine, not to be run as it is, failed, stopped."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run: it is finished, or there was an error, or `note` says why nothing was done for it."""

    name: str
    output: str
    finished: Finished | None = None
    error: HerdError | None = None
    note: str | None = None

    @property
    def exit_code(self) -> int:
        if self.error is not None:
            return self.error.exit_code
        return 3 if self.finished is not None and not self.finished.is_within_limits else 0

    @property
    def was_interrupted(self) -> bool:
        return self.exit_code == BY_SEVERITY[-1]

    @property
    def words(self) -> str:
        """The outcome in a word, or in the sentence that there is."""
        if self.finished is None:
            return str(self.error or self.note)
        done = "done" if self.finished.figures is not None else "done before"
        return done if self.finished.is_within_limits else f"{done}, and too much is quarantined"

    def to_json(self) -> dict[str, Any]:
        totals = self.finished.totals if self.finished is not None else {}
        figures = self.finished.figures if self.finished is not None else None
        return {
            "name": self.name,
            "output": self.output,
            "exit_code": self.exit_code,
            "error": None if self.error is None else str(self.error),
            "note": self.note,
            **totals,
            "session": None if figures is None else figures.to_json(),
        }


def attempted(name: str, output: str, act: Callable[[], Finished]) -> Outcome:
    """The outcome of a run that `act` carries out."""
    try:
        return Outcome(name, output, finished=act())
    except HerdError as e:
        return Outcome(name, output, error=e)


def worst(outcomes: Iterable[Outcome]) -> int:
    """The exit code of a command with these outcomes."""
    return max((outcome.exit_code for outcome in outcomes), key=BY_SEVERITY.index, default=0)
