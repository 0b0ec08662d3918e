"""The seam between Herd and whatever answers: a preparer in rendering processes, an engine in its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.request import Completion, Failure, Prepared, Request


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of itself once it is ready."""

    name: str
    """Kind and version, such as `vllm 0.32.0`; goes into each row's lineage."""
    max_num_seqs: int
    """Requests it works on at once; admission keeps somewhat more than this waiting."""
    facts: dict[str, Any]
    """Effective settings and the host, for `run.json`."""


class Preparer(Protocol):
    """Makes a request's engine input, in a process without the engine. Called from one thread."""

    def prepare(self, request: Request) -> Prepared:
        """The request in the engine's own form.

        Raises:
            RowError: the request can never be answered: too long, a bad sampling parameter, an image the model refuses.
        """


class Engine(Protocol):
    """One engine in this process; `add` and `step` are called from one stepping thread."""

    info: EngineInfo
    tokens: int
    """Output tokens made since the start: what shows a watcher that the engine gets on."""

    def add(self, key: int, prepared: Prepared) -> None:
        """Admits a prepared request under a key that no unfinished request has.

        Raises:
            RowError: the engine refuses this request and no other.
        """

    def step(self) -> list[tuple[int, Completion | Failure]]:
        """Advances the requests under way and returns those that ended; may return none.

        Raises:
            Exception: the engine is dead, and all requests under way with it.
        """

    def has_work(self) -> bool:
        """Whether any admitted request is unfinished."""

    def gauges(self) -> dict[str, float]:
        """What the engine says of itself, some of: `output_tokens` and `prompt_tokens` so far, `cached_tokens` (those of
        the prompts that the prefix cache had), `running` and `waiting` requests, `kv_use` (0 to 1). Any thread."""

    def texts(self, completions: Sequence[Completion]) -> list[str]:
        """The completions' texts, detokenised in one batch; safe to call from any thread."""
