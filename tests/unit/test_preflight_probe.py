"""What a node says of itself: parsed from nvidia-smi's published outputs, and tried on this machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jobs.demo
from cluster.preflight import gpus, probe
from cluster.preflight.gpus import Gpu, GpuError, is_driver_enough, min_driver, parse_gpus, parse_topology
from cluster.preflight.probe import Place, Trial, Wanted, own_versions, take_probe
from pipeline.config import StorageConfig

DEMO = Path(str(jobs.demo.__file__)).parent / "model"
NO_GPUS = Wanted(gpus=False)
TOPOLOGY = """\
\x1b[4m\tGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tPIX\t0-51\t0\t\tN/A
GPU1\tNV18\t X \t{link}\tSYS\t0-51\t0\t\tN/A
GPU2\tNV18\t{link}\t X \tSYS\t52-103\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  NV#  = Connection traversing a bonded set of # NVLinks
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_CACHE", str(tmp_path / "cache"))


def place(path: Path | str) -> Place:
    return Place(str(path), StorageConfig())


def only_trial(wanted: Wanted) -> Trial:
    (trial,) = take_probe(wanted).trials
    return trial


def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A stand-in for the program that the driver brings, first on the PATH."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_parse_gpus_reads_nvidia_smi() -> None:
    said = "NVIDIA H100 80GB HBM3, 81559, 81079, 535.129.03\nNVIDIA GH200, [N/A], [N/A], 550.54.15\n"
    first, second = parse_gpus(said)
    assert first == Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, 81079 * 2**20, "535.129.03")
    assert (second.total_bytes, second.free_bytes) == (0, 0)


def test_parse_topology_sees_a_pair_without_nvlink() -> None:
    assert parse_topology(TOPOLOGY.format(link="NV18")) is True
    assert parse_topology(TOPOLOGY.format(link="SYS")) is False
    assert parse_topology("\tGPU0\nGPU0\t X \t0-51\n") is None


@pytest.mark.parametrize(
    ("driver", "cuda", "enough"),
    [
        ("580.65.06", "13.0", True),
        ("575.57.08", "13.0", False),
        ("525.60.13", "12.8", True),
        ("525.60.11", "12.8", False),
        ("580.65.06", "12.8", True),
        ("450.80.02", "11.8", True),
        ("450.51.06", "11.8", False),
        ("580.65.06", "14.0", None),
        ("580.65.06", "", None),
    ],
)
def test_driver_runs_what_nvidia_says_it_runs(driver: str, cuda: str, enough: bool | None) -> None:
    assert is_driver_enough(driver, cuda) is enough


def test_min_driver_is_told_as_nvidia_writes_it() -> None:
    assert [min_driver(cuda) for cuda in ("13.0", "12.8", "11.8")] == ["580", "525.60.13", "450.80.02"]


def test_probe_asks_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology = TOPOLOGY.format(link="PHB").replace("\x1b[4m", "").replace("\x1b[0m", "")
    (tmp_path / "topology").write_text(topology)
    line = "NVIDIA H100 80GB HBM3, 81559, 81079, 580.82.07"
    script = f'if [ "$1" = topo ]; then cat {tmp_path}/topology; else echo "{line}"; echo "{line}"; fi'
    nvidia_smi(tmp_path, monkeypatch, script)
    taken = take_probe(Wanted())
    assert [g.driver for g in taken.gpus] == ["580.82.07"] * 2
    assert taken.is_nvlinked is False


def test_probe_tells_a_driver_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path, monkeypatch, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    taken = take_probe(Wanted())
    assert taken.gpus == () and "version mismatch" in str(taken.gpu_fault)


def test_probe_tells_a_driver_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(gpus.subprocess, "run", hang)
    with pytest.raises(GpuError, match="did not answer for 20 s"):
        gpus.find_gpus()


def test_probe_of_a_machine_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    taken = take_probe(Wanted())
    assert (taken.gpus, taken.gpu_fault, taken.is_nvlinked) == ((), None, None)


def test_probe_sees_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    taken = take_probe(NO_GPUS)
    assert taken.versions == own_versions() and {"python", "ray", "herd-batch", "vllm"} <= set(taken.versions)
    assert taken.environment["NCCL_SOCKET_IFNAME"] == "eth0"
    assert "hidden" not in repr(taken)
    assert "lo" in taken.interfaces
    assert taken.disk is not None and taken.disk.free_bytes > 0
    assert taken.trials == ()


def test_torch_cuda_is_what_torch_says_of_itself() -> None:
    asked = [sys.executable, "-c", "from torch.version import cuda; print(cuda or '')"]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert (probe.torch_cuda() or "") == said


def test_probe_of_a_folder_that_can_be_written_makes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    trial = only_trial(Wanted(gpus=False, writes=(place(out),)))
    assert (trial.what, trial.found, trial.fault) == (f"write {out}", "can be written and read", None)
    assert list(tmp_path.iterdir()) == []


def test_probe_of_a_folder_below_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert only_trial(Wanted(gpus=False, reads=(place(tmp_path / "file" / "part.parquet"),))).fault
    assert only_trial(Wanted(gpus=False, writes=(place("/proc/none/out"),))).fault


def test_probe_of_a_folder_that_is_not_the_drivers_says_what_to_do(tmp_path: Path) -> None:
    trial = only_trial(Wanted(gpus=False, shared=(place(tmp_path / "run.json"),)))
    assert trial.fault and "mounted" in trial.todo
    (tmp_path / "run.json").write_text("{}")
    assert only_trial(Wanted(gpus=False, shared=(place(tmp_path / "run.json"),))).fault is None


def test_probe_of_a_local_model_checks_its_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DEMO, tmp_path / "model"))
    assert only_trial(Wanted(gpus=False, model=place(folder))).fault is None
    with (folder / "model.safetensors").open("r+b") as f:
        f.truncate(1000)
    assert "has 1,000 bytes and its header says" in str(only_trial(Wanted(gpus=False, model=place(folder))).fault)
    missing = only_trial(Wanted(gpus=False, model=place(tmp_path / "none")))
    assert "not here" in str(missing.fault) and "every node" in missing.todo


def test_probe_of_a_hub_model_that_is_not_here_counts_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    wanted = Wanted(gpus=False, model=place("owner/none-such"), model_bytes=3 * 10**9)
    taken = take_probe(wanted)
    assert taken.disk is not None and taken.disk.missing_bytes == 3 * 10**9
    assert taken.trials[0].found == "to be downloaded from the hub, 3 GB"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in str(take_probe(wanted).trials[0].fault)
