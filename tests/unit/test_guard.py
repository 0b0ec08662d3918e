"""The guard above a command: it ends as the command does, and speaks where the command could not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def start(act: str) -> "subprocess.Popen[str]":
    """A guarded process that does `act`, one line of Python."""
    code = f"import os, signal, sys, time; from jobs.guard import advise, guarded\ndef act():\n {act}\nsys.exit(guarded(act))"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("code", [0, 2, 3, 4, 130])
def test_guard_of_a_command_that_ends_by_itself_ends_alike_and_says_nothing(code: int) -> None:
    guard = start(f"return {code}")
    assert guard.communicate() == ("", "")
    assert guard.returncode == code


def test_guard_of_a_command_that_is_ended_from_below_says_so_with_the_latest_advice() -> None:
    guard = start("advise('Do this.'); advise('Continue with: herd resume x'); os._exit(1)")
    _, said = guard.communicate()
    assert guard.returncode == 4
    assert said == (
        "Error: The command's process was ended by Ray: its node or its head is gone. Continue with: herd resume x\n"
    )


def test_guard_of_a_command_that_is_killed_names_the_signal() -> None:
    guard = start("os.kill(os.getpid(), signal.SIGKILL)")
    _, said = guard.communicate()
    assert (guard.returncode, said) == (4, "Error: The command's process was killed by SIGKILL.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_guard_hands_signals_on(number: signal.Signals) -> None:
    guard = start(
        f"signal.signal({int(number)}, lambda n, f: os._exit(3)); print('ready', flush=True); time.sleep(60); return 0"
    )
    assert guard.stdout is not None and guard.stdout.readline() == "ready\n"
    guard.send_signal(number)
    guard.communicate()
    assert guard.returncode == 3


def test_command_ends_with_its_guard() -> None:
    guard = start("print(os.getpid(), flush=True); time.sleep(60); return 0")
    assert guard.stdout is not None
    child = psutil.Process(int(guard.stdout.readline()))
    guard.kill()
    guard.communicate()
    assert os.getpid() != child.pid
    child.wait(20)
