"""Runs of the real command with vLLM on the CPU and the demo's model, each made once and looked at by many tests."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs `herd ARGS...` as a process of its own from the repository's root, and shows what it said if it failed."""

    def run(*args: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
        arguments = [sys.executable, "-m", "jobs", *map(str, args)]
        ended = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
        assert ended.returncode == code, f"exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended

    return run


def read_parts(folder: Path) -> pa.Table:
    """All part files of a folder as one table, in shard order."""
    return pa.concat_tables([pq.read_table(p) for p in sorted(folder.glob("part-*.parquet"))])
