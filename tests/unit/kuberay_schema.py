"""KubeRay's own resource definitions as strict JSON schemas: a field that they do not know fails, as Kubernetes would drop it."""

import functools
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import REPOSITORY

FOLDER = Path(os.environ.get("HERD_KUBERAY_CRDS") or REPOSITORY.parent / "shared" / "reference" / "kuberay")
FILES = {"RayJob": "rayjobs", "RayCluster": "rayclusters", "RayCronJob": "raycronjobs"}


def check(manifest: dict[str, Any]) -> None:
    """Raises `jsonschema.ValidationError` unless a KubeRay object satisfies its definition. Skips, and says so, where the
    definitions are not at hand."""
    file = FOLDER / f"ray.io_{FILES[manifest['kind']]}.yaml"
    if not file.is_file():
        pytest.skip(f"NOT CHECKED against KubeRay's definitions: no {file}. Set HERD_KUBERAY_CRDS to their folder.")
    version = manifest["apiVersion"].removeprefix("ray.io/")
    jsonschema.Draft202012Validator(_schema(file, version)).validate(manifest)


@functools.cache
def _schema(file: Path, version: str) -> dict[str, Any]:
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    (served,) = [v for v in definition["spec"]["versions"] if v["name"] == version and v["served"]]
    schema = _strict(served["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # checked by Kubernetes itself, not by the definition
    return schema


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(n) for n in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    is_open = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not is_open:
        made["additionalProperties"] = False
    return made
