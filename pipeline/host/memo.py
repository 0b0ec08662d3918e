"""Asks identical requests once: whoever comes second waits for the first one's answer, or is given it.

For requests only whose answer does not depend on chance. Failures go to those that wait and are not kept: what failed
once may well be answered when it is asked anew.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipeline.request import Completion, Failure

MAX_ANSWERS = 100_000
MAX_TOKENS = 8_000_000
"""Output tokens that are kept at most: about 100 MB of answers."""

Waiter = TypeVar("Waiter")


@dataclass(frozen=True, slots=True)
class Known:
    """An answer, the digest of what was asked for it, and the run that asked."""

    completion: Completion
    request_sha256: str
    run_id: str


class Memo(Generic[Waiter]):
    """Answers by the key of their request, the least recently used going first. Safe to use from several threads."""

    def __init__(self, max_answers: int = MAX_ANSWERS, max_tokens: int = MAX_TOKENS) -> None:
        self._max_answers, self._max_tokens, self._tokens = max_answers, max_tokens, 0
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._asked: dict[str, list[Waiter]] = {}
        self._lock = threading.Lock()

    def claim(self, key: str, waiter: Waiter) -> Known | bool:
        """The answer if it is known; else whether the caller is to ask. If not, `waiter` is among those that `settle`
        returns when the one who asks has an answer."""
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
            if (waiting := self._asked.get(key)) is not None:
                waiting.append(waiter)
                return False
            self._asked[key] = []
            return True

    def settle(self, key: str, result: Known | Failure) -> list[Waiter]:
        """Says how a request that was to be asked has ended; returns who waits for it."""
        with self._lock:
            if isinstance(result, Known):
                self._known[key] = result
                self._tokens += len(result.completion.token_ids)
                while len(self._known) > self._max_answers or self._tokens > self._max_tokens:
                    _, gone = self._known.popitem(last=False)
                    self._tokens -= len(gone.completion.token_ids)
            return self._asked.pop(key, [])
