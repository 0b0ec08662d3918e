"""A process above the one that drives a run, to say how it ended where it cannot say so itself.

Ray's native code ends a driver that has lost its node or its head, with status 1 and no word, whatever Python would like to
do first; the kernel's OOM killer says nothing either. The guard hands signals on, and ends as the driver does, unless the
driver was ended from below: then it says so, with what to do, and exits as a failed run does.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from pipeline.errors import HerdError
from pipeline.fate import end_with

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
KNOWN = frozenset({0, 2, 3, HerdError.exit_code, 130})
"""Statuses with which a command ends of its own accord."""

_advice_to: list[int] = []
"""The guard's pipe, in a process that has a guard."""


def advise(sentence: str) -> None:
    """What the guard is to say if this process ends without a word; nothing where there is none."""
    for pipe in _advice_to:
        os.write(pipe, sentence.encode() + b"\n")


def guarded(act: Callable[[], int]) -> int:
    """Runs `act` in a child of this process, which must not have begun any thread; returns the exit status to end with.

    The child has a process group of its own, so that an interrupt from a terminal reaches it once: from here. It ends
    with this process.
    """
    us = os.getpid()
    advised, advice_to = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(advised)
        os.setpgid(0, 0)
        end_with(us)
        _advice_to.append(advice_to)
        os._exit(act())
    os.close(advice_to)

    def hand_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in KNOWN:
        return code
    with os.fdopen(advised, errors="replace") as said:
        advice = said.read().splitlines()
    how = (
        f"was killed by {signal.Signals(-code).name}" if code < 0 else "was ended by Ray: its node or its head is gone"
    )
    sys.stderr.write(" ".join([f"Error: The command's process {how}.", *advice[-1:]]) + "\n")
    return HerdError.exit_code
