"""Jobs submitted to a real Ray head, which has processes, a folder and ports of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.submission import JobsApi
from tests.chaos.cage import Cage, Command, wait_until
from tests.conftest import S3_ENVIRONMENT, Herd

pytestmark = pytest.mark.timeout(900)

SLOW = {"kind": "echo", "max_num_seqs": 4, "echo": {"latency_s": 0.4}}


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5)
    except urllib.error.HTTPError:
        return True  # it wants a token, which Ray's own client has
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def cage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cage]:
    made = Cage(tmp_path_factory.mktemp("submit") / "cage")
    made.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), made.environment["PATH"]])
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def head(cage: Cage) -> Iterator[str]:
    """The address of a head's dashboard. It ends with the cage: `ray stop` would end the clusters of others too."""
    folder = tempfile.mkdtemp(prefix="hs")  # Ray's sockets lie there, and their paths must be short
    gcs, dashboard, client, *agents = free_ports(6)
    options = {
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": agents[0],
        "dashboard-agent-grpc-port": agents[1],
        "metrics-export-port": agents[2],
        "num-cpus": 2,
        "temp-dir": folder,
        "node-ip-address": "127.0.0.1",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    log = cage.folder / "head.log"
    with log.open("wb") as out:
        command = ["ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *given]
        process = cage.start(*command, stdout=out, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{dashboard}"

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        return answers(f"{url}/api/version")

    try:
        wait_until("the head's dashboard", is_up)
        yield url
    finally:
        cage.end()
        shutil.rmtree(folder, ignore_errors=True)


def commits(out: Path) -> set[str]:
    return {p.name for p in (out / "commits").glob("*.json")}


def id_of(command: Command) -> str:
    said = wait_until("an id", lambda: [line for line in command.said.splitlines() if ": herd-" in line])
    return str(said[0].rpartition(" ")[2])


def committed(out: Path, command: Command) -> None:
    def met() -> bool:
        assert command.code is None, command.said
        return bool(commits(out))

    wait_until("a commit", met)


@pytest.mark.chaos
def test_job_goes_on_when_its_client_is_killed_and_is_found_again(
    cage: Cage, head: str, herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(120, rows_per_group=8)
    job = write_job(name="cows", engine=SLOW, pool={"shards_in_flight": 1})
    client = cage.herd("submit", job, "--address", head)
    job_id = id_of(client)
    committed(tmp_path / "out", client)
    client.process.kill()
    client.wait()

    again = cage.herd("submit", job, "--address", head)
    assert again.wait() == 0, again.said
    assert f"Running already: {job_id}" in again.said
    assert "120 answered" in again.said
    verdict = json.loads(herd("verify", tmp_path / "out", "--json").out)
    assert verdict["complete"] and verdict["rows_ok"] == 120

    state = json.loads(herd("status", job_id, "--address", head, "--json").out)
    assert (state["state"], state["driver_exit_code"]) == ("succeeded", 0)
    assert state["output"] == str(tmp_path / "out")
    assert "120 answered" in herd("logs", job_id, "--address", head).out
    shown = json.dumps(JobsApi(head)._client.get_job_info(job_id).runtime_env)
    assert "gcs://" in shown
    assert not any(value in shown for key, value in S3_ENVIRONMENT.items() if "KEY" in key)


@pytest.mark.chaos
def test_job_that_is_stopped_commits_what_it_has_and_resumes_with_the_exit_code_of_the_run(
    cage: Cage, head: str, herd: Herd, write_input: Callable[..., Path], write_job: Callable[..., Path], tmp_path: Path
) -> None:
    write_input(120, rows_per_group=8)
    engine = {**SLOW, "echo": {"latency_s": 0.4, "fail_on": "number 7$"}}
    job = write_job(engine=engine, pool={"shards_in_flight": 1}, limits={"max_quarantined_rows": 0})
    client = cage.herd("submit", job, "--address", head)
    job_id = id_of(client)
    committed(tmp_path / "out", client)
    stopped = herd("stop", job_id, "--address", head, "--json")
    assert stopped.code == 0, stopped.err
    assert json.loads(stopped.out)["state"] == "stopped"
    assert client.wait() == 130, client.said
    said = herd("logs", job_id, "--address", head).out
    assert "Stopped with" in said and "Traceback" not in said
    kept = commits(tmp_path / "out")
    assert 0 < len(kept) < 16
    assert herd("stop", job_id, "--address", head).code == 0

    again = cage.herd("submit", job, "--address", head)
    assert again.wait() == 3, again.said
    assert id_of(again) != job_id
    assert kept < commits(tmp_path / "out")
    assert json.loads(herd("verify", tmp_path / "out", "--json").out)["complete"]


def test_job_that_cannot_run_exits_as_the_run_does(
    head: str, herd: Herd, write_job: Callable[..., Path], tmp_path: Path
) -> None:
    outcome = herd("submit", write_job(), "--address", head)
    assert outcome.code == 2, outcome.out + outcome.err
    assert str(tmp_path / "input") in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_submit_that_would_show_a_secret_is_refused(head: str, herd: Herd, write_job: Callable[..., Path]) -> None:
    before = len(JobsApi(head)._listed())
    outcome = herd("submit", write_job(), "--address", head, "--env", "AWS_SECRET_ACCESS_KEY")
    assert outcome.code == 2
    assert S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"] not in outcome.out + outcome.err
    assert len(JobsApi(head)._listed()) == before


@pytest.mark.parametrize("verb", ["status", "logs", "stop"])
def test_job_that_the_cluster_does_not_have_is_one_sentence(head: str, herd: Herd, verb: str) -> None:
    outcome = herd(verb, "herd-none-20261125T211153-5fcf8c", "--address", head)
    assert outcome.code == 2
    assert "has no job herd-none-20261125T211153-5fcf8c" in outcome.err and "Traceback" not in outcome.err


def test_cluster_that_does_not_answer_is_one_sentence(herd: Herd, write_job: Callable[..., Path]) -> None:
    (port,) = free_ports(1)
    outcome = herd("submit", write_job(), "--address", f"http://127.0.0.1:{port}")
    assert outcome.code == 4
    assert "does not answer" in outcome.err and "8265" in outcome.err and "Traceback" not in outcome.err
