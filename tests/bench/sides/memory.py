"""This process's peak memory. Not `getrusage`: its figure is handed down from the process that started this one."""

import re
from pathlib import Path


def peak_mib() -> float:
    """The most resident memory that this process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
