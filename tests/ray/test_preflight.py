"""The preflight on a cluster of two nodes of its own: real probes of real nodes, and made-up ones."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.cage import Cage, Nodes

ODD = {"num_cpus": 1, "num_gpus": 2, "resources": {"accelerator_type:H100": 1}}
"""A node that claims GPUs; only a job that asks for them sees what is wrong with its environment."""


@pytest.fixture(scope="module")
def cage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cage]:
    made = Cage(tmp_path_factory.mktemp("preflight") / "cage")
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def nodes(cage: Cage) -> Nodes:
    return Nodes(cage, {"num_cpus": 2}, {**ODD, "env_vars": {"NCCL_SOCKET_IFNAME": "none-such0"}})


def ended(cage: Cage, *command: object) -> tuple[int, str, str]:
    process = cage.start(*map(str, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=240)
    return process.returncode, out.decode(), err.decode()


def pretended(cage: Cage, nodes: Nodes, what: str) -> list[dict[str, Any]]:
    code, out, err = ended(cage, "tests.ray.pretend", nodes.address, nodes.nodes[1]["id"], what)
    assert code == 0, err
    return [f for f in json.loads(out.splitlines()[-1]) if f["what"] != "NCCL_SOCKET_IFNAME"]


def test_doctor_of_a_job_on_two_nodes_passes_on_each_and_leaves_nothing_behind(
    cage: Cage, nodes: Nodes, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write_input(20)
    code, out, err = ended(cage, "jobs", "doctor", write_job(), "--address", nodes.address, "--json")
    assert code == 0, out + err
    found = json.loads(out)
    assert {f["verdict"] for f in found} == {"pass"}
    names = {f["node"] for f in found if f["node"]}
    assert {name.rpartition("/")[2] for name in names} == {n["id"][:6] for n in nodes.nodes}
    (mark,) = {f["what"] for f in found if f["what"].startswith("shared ")}
    for what in ("versions", f"read {folder}/part-0.parquet", f"write {tmp_path}/out", mark):
        assert {f["node"] for f in found if f["what"] == what} == names, what
    assert sorted(p.name for p in tmp_path.iterdir()) == ["input", "job.yaml"]


def test_doctor_tells_what_two_nodes_share_in_one_line(cage: Cage, nodes: Nodes) -> None:
    code, out, _ = ended(cage, "jobs", "doctor", "--address", nodes.address)
    (line,) = [line for line in out.splitlines() if "versions" in line]
    assert "2 nodes" in line and "ray 2." in line
    (warning,) = [line for line in out.splitlines() if line.startswith("warn")]
    assert nodes.nodes[1]["id"][:6] in warning and "none-such0 names none of this node's interfaces" in warning
    assert code == 0


@pytest.mark.parametrize(
    ("what", "verdict", "subject", "words"),
    [
        ("ray", "fail", "ray", "2.40.0, elsewhere"),
        ("shm", "fail", "/dev/shm", "64 MiB"),
        ("clock", "warn", "clock", "ahead of the driver's"),
        pytest.param("hang", "fail", "node", "nothing came back within 30 s", marks=pytest.mark.chaos),
        pytest.param("die", "fail", "node", "does not answer", marks=pytest.mark.chaos),
    ],
)
def test_node_that_differs_is_found_and_the_other_passes(
    cage: Cage, nodes: Nodes, what: str, verdict: str, subject: str, words: str
) -> None:
    (found,) = pretended(cage, nodes, what)
    assert (found["verdict"], found["what"]) == (verdict, subject)
    assert found["node"].endswith(nodes.nodes[1]["id"][:6])
    assert words in found["found"] and found["todo"]


def test_run_stops_at_what_fails_with_a_sentence_each_unless_told_otherwise(
    cage: Cage, nodes: Nodes, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(20)
    engine = {"kind": "echo", "tensor_parallel_size": 2}
    job = write_job(engine=engine, pool={"accelerator": "H100"})
    code, _, err = ended(cage, "jobs", "run", job, "--address", nodes.address)
    assert code == 2, err
    assert "NCCL_SOCKET_IFNAME on" in err and "Traceback" not in err and "herd doctor" in err
    assert not list((tmp_path / "out").glob("data/*"))
    _, _, err = ended(cage, "jobs", "run", job, "--address", nodes.address, "--no-preflight")
    assert "starting engines" in err and "NCCL_SOCKET_IFNAME" not in err


def test_run_whose_nodes_pass_goes_on(
    cage: Cage, nodes: Nodes, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(20)
    code, out, err = ended(cage, "jobs", "run", write_job(), "--address", nodes.address, "--json")
    assert code == 0, err
    assert json.loads(out)["rows_ok"] == 20
    assert not [p for p in (tmp_path / "out").rglob("*") if "probe" in p.name]
