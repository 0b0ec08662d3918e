"""What a cluster gets of a job: its file, Herd's packages, an id and a command. Pure but for the files it lays out."""

import hashlib
import json
import re
import shlex
import shutil
import uuid
from datetime import datetime
from pathlib import Path

import yaml

from pipeline.config import RunConfig

PACKAGES = Path(__file__).resolve().parent.parent
PACKAGE_NAMES = ("pipeline", "cluster", "jobs")
NOT_PACKED = shutil.ignore_patterns("__pycache__", "demo", "*.pyc")
"""The demo's data and model are of no use to other jobs."""
ID = re.compile(r"herd-.+-\d{8}T\d{6}-[0-9a-f]{6}")
PYTHON = '"$(command -v python || command -v python3)"'


def is_job_id(name: str) -> bool:
    """Whether this is an id that `herd submit` gives, and no folder here."""
    return bool(ID.fullmatch(name)) and not Path(name).exists()


def new_id(name: str, now: datetime) -> str:
    return f"herd-{name}-{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"


def entrypoint(python: str | None, *, preflight: bool = True) -> str:
    """The command that the cluster runs, in the folder of the job. `exec` lets the signal of a stop reach Herd itself."""
    interpreter = PYTHON if python is None else shlex.quote(python)
    return f"exec {interpreter} -m jobs run job.yaml --address auto" + ("" if preflight else " --no-preflight")


def pack(config: RunConfig, folder: Path, *, with_herd: bool) -> None:
    """Lays out what the cluster gets. The same job gives the same bytes, which Ray then sends only once."""
    (folder / "job.yaml").write_text(
        yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False)
    )
    for name in PACKAGE_NAMES if with_herd else ():
        shutil.copytree(PACKAGES / name, folder / name, ignore=NOT_PACKED)


def digest(config: RunConfig) -> str:
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]
