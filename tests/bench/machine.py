"""The machine that a benchmark ran on, as its report names it: no host and no path."""

import os
import platform
import re
from pathlib import Path

import psutil

from pipeline.facts import versions


def machine() -> str:
    """Cores, processor and memory."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    processor = found[1] if found else platform.processor()
    memory = psutil.virtual_memory().total / 2**30
    return f"{len(os.sched_getaffinity(0))} cores, {processor}, {platform.machine()}, {memory:.0f} GiB, no GPU used"


def software() -> str:
    return ", ".join(f"{name} {version}" for name, version in versions().items())
