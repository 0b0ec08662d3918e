"""Submission through `kubectl`: a small program of that name stands in for it, and notes what it was told."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes import submit_to_kubernetes
from cluster.manifests.kuberay import ray_job_objects
from pipeline.errors import ConfigError, HerdError
from tests.unit.test_kuberay import FULL, sent

KUBECTL = """#!{python}
import json, sys, yaml
told = {{"arguments": sys.argv[1:], "object": yaml.safe_load(sys.stdin)}}
with open({log!r}, "a") as log:
    log.write(json.dumps(told) + "\\n")
if told["object"]["kind"] == {refuses!r}:
    print("Error from server (Forbidden):\\n no", file=sys.stderr)
    sys.exit(1)
if "create" in sys.argv:
    print("rayjob.ray.io/herd-cows-x7k2p")
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a `kubectl` on the search path, alone, that refuses one kind of object; returns how to read what it was told."""

    def install(refuses: str = "") -> Any:
        log = tmp_path / "told"
        program = tmp_path / "kubectl"
        program.write_text(KUBECTL.format(python=sys.executable, log=str(log), refuses=refuses))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return lambda: [json.loads(line) for line in log.read_text().splitlines()]

    return install


def objects() -> list[dict[str, Any]]:
    return ray_job_objects(sent(), FULL, generate_name=True)


def test_submit_to_kubernetes_applies_what_the_job_needs_and_creates_the_job_last(kubectl: Any) -> None:
    told = kubectl()
    submitted = submit_to_kubernetes(objects(), context="prod", namespace="batch")
    where = ["--context", "prod", "--namespace", "batch"]
    assert [t["object"]["kind"] for t in told()] == ["PersistentVolumeClaim", "ConfigMap", "RayJob"]
    assert [t["object"] for t in told()] == objects()
    assert [t["arguments"] for t in told()] == [
        [*where, "apply", "-f", "-"],
        [*where, "apply", "-f", "-"],
        [*where, "create", "-o", "name", "-f", "-"],
    ]
    assert submitted.name == "rayjob.ray.io/herd-cows-x7k2p"
    assert "kubectl --context prod --namespace batch logs --follow job/herd-cows-x7k2p" in submitted.watch


def test_submit_to_kubernetes_that_is_refused_says_so_and_goes_no_further(kubectl: Any) -> None:
    told = kubectl(refuses="ConfigMap")
    with pytest.raises(HerdError, match=r"hand over the ConfigMap: Error from server \(Forbidden\): no") as caught:
        submit_to_kubernetes(objects())
    assert caught.value.exit_code == 4
    assert [t["object"]["kind"] for t in told()] == ["PersistentVolumeClaim", "ConfigMap"]


def test_submit_to_kubernetes_without_kubectl_leaves_the_manifests_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ConfigError, match="There is no `kubectl`") as caught:
        submit_to_kubernetes(objects())
    (file,) = tmp_path.glob("*/manifests.yaml")
    assert str(file) in str(caught.value)
    assert list(yaml.safe_load_all(file.read_text())) == objects()
