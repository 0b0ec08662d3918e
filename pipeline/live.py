"""`progress.json`: the latest figures of the session that writes an output, for whoever looks at the folder meanwhile.

It proves nothing and nothing waits for it: a thread of its own writes it now and then, and what goes wrong with that is
nobody's trouble.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pipeline.errors import HerdError
from pipeline.facts import now
from pipeline.output import Output
from pipeline.progress import Progress

NAME = "progress.json"
WRITE_EVERY_S = 5.0
CLOSE_S = 5.0
"""How long the end of a session waits at most for its last figures to be written."""


class LiveFile:
    """Writes `progress.json` while a session goes on. `check` raises `HerdError` once the output is another session's."""

    def __init__(
        self, output: Output, run_id: str, check: Callable[[], None], *, every_s: float = WRITE_EVERY_S
    ) -> None:
        self._output, self._run_id, self._check, self._every_s = output, run_id, check, every_s
        self._next = 0.0
        self._latest: tuple[dict[str, Any], bool] | None = None
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._write_always, name="herd-live", daemon=True)
        self._thread.start()

    def offer(self, progress: Progress) -> None:
        """Has the figures written, unless others were a short while ago. Does not wait."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self._hand_over(progress, is_last=False)

    def close(self, progress: Progress) -> None:
        """Has the last figures written, and waits for that for `CLOSE_S` at most."""
        self._hand_over(progress, is_last=True)
        self._thread.join(CLOSE_S)

    def _hand_over(self, progress: Progress, *, is_last: bool) -> None:
        record = {"run_id": self._run_id, "written_at": now(), **progress.to_json()}
        with self._wake:
            self._latest = record, is_last
            self._wake.notify()

    def _write_always(self) -> None:
        is_last = False
        while not is_last:
            with self._wake:
                while self._latest is None:
                    self._wake.wait()
                (record, is_last), self._latest = self._latest, None
            with contextlib.suppress(HerdError):
                self._check()
                self._output.put_json(NAME, record)


def read_live(output: Output, run_id: str) -> dict[str, Any] | None:
    """What the latest session of the run wrote, with `age_s`, the seconds since; None where there is nothing of it."""
    with contextlib.suppress(HerdError, KeyError, ValueError):  # not there, or not what a session writes
        record = output.read_json(NAME)
        if isinstance(record, dict) and record.get("run_id") == run_id:
            age = datetime.fromisoformat(now()) - datetime.fromisoformat(record["written_at"])
            return {"age_s": round(age.total_seconds(), 1), **record}
    return None
