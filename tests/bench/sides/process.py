"""Runs one side as a process of its own and takes the JSON document that it prints last."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.bench.measure import SideError

ROOT = Path(__file__).resolve().parents[3]


def told(module: str, *arguments: object) -> dict[str, Any]:
    """The last line that `python -m MODULE ARGUMENTS...` prints, as JSON.

    Raises:
        SideError: it failed; with the last line of what it said.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SideError(last_words(ended.stderr) or f"it ended with {ended.returncode}")
    documents = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # libraries have their say too
    if not documents:
        raise SideError("it ended without a word")
    return dict(json.loads(documents[-1]))


def last_words(text: str) -> str:
    """The last line of a process's errors that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
