"""The estimate that a run keeps of itself: made beside the start of its engines, and never worth a delay or a failure.

A thread of low priority looks at a few rows; the run's own thread, which alone writes `run.json`, puts what it found there.
"""

import contextlib
import os
import threading
from typing import Any

from pipeline.books import PreparedRun
from pipeline.errors import HerdError
from pipeline.facts import now
from pipeline.output import Output
from pipeline.storage import Store

NICENESS = 10
MAX_BYTES = 32 * 2**20
"""Bytes of rows that are gone through at most."""
WRITE_S = 5.0
"""How long writing it may hold the run up at most."""
LEFT_OUT = ("engines", "fit")
"""What the record of a run holds in other places."""


class Forecast:
    """Begins to estimate a run as soon as it is made, if the job wants it. An estimate that an earlier session kept stands.
    Entirely optional: whatever goes wrong, there is none."""

    def __init__(self, run: PreparedRun) -> None:
        self._run = run
        self._made: dict[str, Any] | None = None
        if run.config.cost.sample_rows and not run.replayed:
            threading.Thread(target=self._make, name="herd-forecast", daemon=True).start()

    def _make(self) -> None:
        with contextlib.suppress(Exception):
            # of this thread and those that it starts, not of the process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
            from jobs.planning import Question, estimate_facts

            run = self._run
            question = Question(run.config.cost.sample_rows, max_bytes=MAX_BYTES)
            found = estimate_facts(run.config, run.columns, run.table, question)
            self._made = {"made_at": now(), **{k: v for k, v in found.items() if k not in LEFT_OUT}}

    def keep(self) -> None:
        """Writes the estimate down once it is made. Called from the run's own thread, as often as it likes."""
        if self._made is None:
            return
        made, self._made = self._made, None
        uri, storage = self._run.output.uri, self._run.config.output.storage
        quick = storage.model_copy(update={"timeout_s": min(WRITE_S, storage.timeout_s)})
        output = Output(uri, Store(uri, quick, retry_s=0))
        with contextlib.suppress(HerdError):  # the run will find out for itself what is wrong with its output
            self._run.check_lease()
            record = output.read_run()
            if "estimate" not in record:
                output.put_json("run.json", {**record, "estimate": made})
