"""What the kernel knows of a process: with which other it is to end, and what it is called in `ps` and `top`."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def end_with(parent: int) -> None:
    """Has the kernel kill this process when its parent's thread that made it ends, however that comes about."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def be_called(name: str) -> None:
    """Names this process, in at most 15 characters: processes of one fork server share a command line."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode())
