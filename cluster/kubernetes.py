"""Hands manifests to a Kubernetes cluster through `kubectl`, which knows the user's contexts and credentials."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.manifests.text import yaml_text
from pipeline.errors import ConfigError, HerdError

KUBECTL_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Submitted:
    """An object that now exists, as `kind.group/name`, and commands with which to watch it."""

    name: str
    watch: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "watch": list(self.watch)}


def submit_to_kubernetes(
    objects: Sequence[dict[str, Any]], *, context: str | None = None, namespace: str | None = None
) -> Submitted:
    """Applies all objects but the last, which may be there already, and creates the last: the job itself.

    Raises:
        ConfigError: there is no `kubectl`; the manifests are written to a file, which is named.
        HerdError: the cluster refuses, in its own words.
    """
    *companions, job = objects
    where = [*(["--context", context] if context else []), *(["--namespace", namespace] if namespace else [])]
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        file = Path(tempfile.mkdtemp(prefix="herd-")) / "manifests.yaml"
        file.write_text(yaml_text(objects))
        raise ConfigError(
            "There is no `kubectl` on this machine",
            where="--kubernetes",
            todo=f"The manifests are in {file}: where there is one, run `kubectl create -f` with it.",
        )
    for companion in companions:
        _kubectl([kubectl, *where, "apply", "-f", "-"], companion)
    name = _kubectl([kubectl, *where, "create", "-o", "name", "-f", "-"], job).strip()
    asked = " ".join(["kubectl", *where])
    short = name.rpartition("/")[2]
    return Submitted(
        name,
        (
            f"{asked} get {name} --watch",
            f"{asked} logs --follow job/{short}",
            f"{asked} delete {name}",
        ),
    )


def _kubectl(command: list[str], stdin: dict[str, Any]) -> str:
    try:
        done = subprocess.run(
            command, input=yaml_text([stdin]), capture_output=True, text=True, timeout=KUBECTL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise HerdError(f"kubectl did not answer within {KUBECTL_TIMEOUT_S} s", todo="Look at the cluster.") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"it ended with {done.returncode}"
        raise HerdError(f"kubectl could not hand over the {stdin['kind']}: {said}", todo="Nothing runs yet.")
    return done.stdout
