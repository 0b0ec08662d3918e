"""docs/cluster.md: what it says can run without a cluster does, line by line, with the job that it shows."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, Herd
from tests.unit.kuberay_schema import FILES, check

PAGE = (REPOSITORY / "docs" / "cluster.md").read_text()


def blocks(fence: str) -> list[str]:
    return re.findall(rf"^```{fence}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_cluster_page_commands_that_need_no_cluster_run_as_they_stand(
    herd: Herd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (job,) = blocks("yaml")
    Path("cows.yaml").write_text(job)
    (commands,) = blocks("sh offline")
    lines = commands.splitlines()
    assert len(lines) >= 7
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "herd"
        outcome = herd(*arguments)
        assert outcome.code == 0, f"{line}\n{outcome.err}"
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} - {"cows.yaml"}
    named = {
        "build/gpu.Dockerfile",
        "k8s/rayjob.yaml",
        "k8s/configmap.yaml",
        "standing/raycluster.yaml",
        "aws/launcher.yaml",
    }
    assert named <= written
    for file in tmp_path.rglob("ray*.yaml"):
        manifest = yaml.safe_load(file.read_text())
        assert manifest["kind"] in FILES
        check(manifest)
    assert (tmp_path / "units" / "herd-cows.timer").is_file()
