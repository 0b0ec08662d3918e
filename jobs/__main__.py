"""The process of the `herd` command, also as `python -m jobs`."""

import contextlib
import os
import signal
import sys

from jobs.cli import main


def run() -> None:
    """Runs the command and ends the process with its exit status, at once: threads of Ray and Arrow outlive the command,
    and one of them was seen to abort the interpreter's own shutdown, after all was done."""
    code = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end is being interrupted, at any time
    try:
        main()
    except SystemExit as e:
        code = int(e.code or 0)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it is gone
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
