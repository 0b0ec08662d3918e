"""The process of the `herd` command, also as `python -m jobs`."""

import contextlib
import os
import signal
import sys

from jobs.guard import guarded

DRIVING = frozenset({"run", "resume", "replay", "bench"})
"""Verbs that drive a run, whose process can be ended from below."""


def run() -> None:
    """Runs the command and ends the process with its exit status, at once: threads of Ray and Arrow outlive the command,
    and one of them was seen to abort the interpreter's own shutdown, after all was done."""
    os._exit(guarded(_run) if DRIVING.intersection(sys.argv[1:2]) else _run())


def _run() -> int:
    from jobs.cli import main  # brings libraries with threads, which do not survive a fork

    code = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end is being interrupted, at any time
    try:
        main()
    except SystemExit as e:
        code = int(e.code or 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it is gone
            stream.flush()
    return code


if __name__ == "__main__":
    run()
