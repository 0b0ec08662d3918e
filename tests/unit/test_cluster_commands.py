"""`herd cluster render` and `herd schedule`, as a user gives them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from jobs.commands.kubernetes import kubernetes_options, submit_by_kubectl
from jobs.commands.site import SITE_NAMES, site_options
from jobs.sending import job_to_send
from pipeline.errors import ConfigError
from tests.conftest import Herd
from tests.unit.helpers import job_data
from tests.unit.kuberay_schema import check

IMAGE = ("--image", "registry/herd:1")
DATED = {"name": "cows-{{ ds }}", "input": {"uri": "s3://b/{{ ds }}"}, "output": {"uri": "s3://b/out/{{ ds_nodash }}"}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file over `s3://`, with keys replaced."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "job.yaml"
        sections = {"name": "cows", "input": {"uri": "s3://b/in"}, "output": {"uri": "s3://b/out"}}
        path.write_text(yaml.safe_dump(job_data(**sections) | changes))
        return path

    return write


def test_render_prints_a_ray_job_with_its_job_file(herd: Herd, write: Callable[..., Path]) -> None:
    path = write(prompt={"user": '{{ text }}: it\'s "that"\n# not a comment\n'})
    outcome = herd("cluster", "render", path, *IMAGE, "--set", "limits.drain_s=90")
    assert outcome.code == 0
    config_map, ray_job = yaml.safe_load_all(outcome.out)
    check(ray_job)
    shipped = yaml.safe_load(config_map["data"]["job.yaml"])
    assert shipped == yaml.safe_load(path.read_text()) | {"limits": {"drain_s": 90}}
    assert (
        ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["terminationGracePeriodSeconds"]
        == 120
    )
    assert "kubectl get rayjob herd-cows --watch" in outcome.err


def test_render_to_a_folder_writes_one_file_an_object(herd: Herd, write: Callable[..., Path], tmp_path: Path) -> None:
    options = ("--cache", "claim:models:1Ti", "--namespace", "batch", "--output", tmp_path / "k8s", "--json")
    outcome = herd("cluster", "render", write(), *IMAGE, *options)
    document = json.loads(outcome.out)
    names = ["configmap.yaml", "persistentvolumeclaim.yaml", "rayjob.yaml"]
    assert sorted(p.name for p in (tmp_path / "k8s").iterdir()) == names
    assert sorted(document["written"]) == [str(tmp_path / "k8s" / name) for name in names]
    assert {name: (tmp_path / "k8s" / name).read_text() for name in names} == document["files"]


def test_render_of_every_kind_prints_something_that_can_be_read(herd: Herd, write: Callable[..., Path]) -> None:
    path = write()
    cluster = herd("cluster", "render", path, "--kind", "raycluster", *IMAGE, "--nodes", "2")
    check(yaml.safe_load(cluster.out))
    cron = herd("cluster", "render", path, "--kind", "raycronjob", *IMAGE, "--cron", "0 2 * * SUN", "--suspend")
    scheduled = list(yaml.safe_load_all(cron.out))[-1]
    check(scheduled)
    assert (scheduled["spec"]["schedule"], scheduled["spec"]["suspend"]) == ("0 2 * * 0", True)
    launcher = herd("cluster", "render", path, "--kind", "launcher", *IMAGE, "--ami", "ami-012")
    assert yaml.safe_load(launcher.out)["docker"]["image"] == "registry/herd:1"
    assert herd("cluster", "render", "--kind", "dockerfile-gpu").out.splitlines()[-1] == 'CMD ["herd", "--help"]'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "No image is named"),
        ((*IMAGE, "--kind", "raycronjob"), "A raycronjob needs its times"),
        (
            (*IMAGE, "--kind", "raycronjob", "--cron", "0 2 * * *", "--time-zone", "Mars"),
            "There is no time zone `Mars`",
        ),
        ((*IMAGE, "--kind", "launcher"), "No AMI is named"),
        ((*IMAGE, "--ami", "ami-012"), "--ami has no meaning for --kind rayjob"),
        ((*IMAGE, "--kind", "raycluster", "--retries", "3"), "--retries has no meaning for --kind raycluster"),
        ((*IMAGE, "--kind", "launcher", "--ami", "ami-012", "--secret", "aws"), "--secret has no meaning"),
        (("--kind", "dockerfile-cpu", *IMAGE), "--image has no meaning for --kind dockerfile-cpu"),
        ((*IMAGE, "--ds", "today"), "the job does not use the date"),
        ((*IMAGE, "--label", "no-value"), "not of the form KEY=VALUE"),
        ((*IMAGE, "--env", "HF_TOKEN=x"), "looks like a credential"),
        ((*IMAGE, "--set", "output.uri=out"), "The cluster's pods have no `out`"),
        ((*IMAGE, "--output", "/proc/none"), "The files cannot be written"),
    ],
)
def test_render_of_what_cannot_be_is_refused_in_one_sentence(
    herd: Herd, write: Callable[..., Path], options: tuple[str, ...], said: str
) -> None:
    outcome = herd("cluster", "render", write(), *options)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_render_without_a_job_says_that_the_size_is_the_jobs(herd: Herd) -> None:
    outcome = herd("cluster", "render", *IMAGE)
    assert (outcome.code, outcome.out) == (2, "")
    assert "no JOB is given" in outcome.err


def test_site_names_are_those_of_the_options() -> None:
    command = click.command()(site_options(lambda **options: None))
    assert {p.name for p in command.params} == SITE_NAMES


def test_job_to_send_leaves_the_date_open_and_asks_for_it_where_it_runs(write: Callable[..., Path]) -> None:
    sent = job_to_send(str(write(**DATED)), ds="yesterday")
    assert yaml.safe_load(sent.text)["output"] == {"uri": "s3://b/out/{{ ds_nodash }}"}
    assert sent.command[-2:] == ["--ds", "yesterday"]
    assert (sent.config.name, sent.config.output.uri) == ("cows-ds", "s3://b/out/ds")


def test_job_to_send_over_columns_named_ds_is_not_dated(write: Callable[..., Path]) -> None:
    sent = job_to_send(str(write(prompt={"user": "On {{ ds }}: {{ text }}"})), default_ds="today")
    assert sent.ds is None and "--ds" not in sent.command


@pytest.mark.parametrize("ds", ["2026-11-25", "today", "2026-11-01..yesterday"])
def test_job_to_send_takes_days_and_ranges(write: Callable[..., Path], ds: str) -> None:
    assert job_to_send(str(write(**DATED)), ds=ds).ds == ds


def test_job_to_send_without_its_day_or_with_none_is_refused(write: Callable[..., Path]) -> None:
    path = str(write(**DATED))
    with pytest.raises(ConfigError, match="The job is for a day, and none is given"):
        job_to_send(path)
    with pytest.raises(ConfigError, match="`tomorrow; rm` is no date"):
        job_to_send(path, ds="tomorrow; rm")


def test_schedule_for_kubernetes_prints_a_ray_cron_job_and_the_next_runs(
    herd: Herd, write: Callable[..., Path]
) -> None:
    outcome = herd(
        "schedule", write(**DATED), "--cron", "0 2 * * *", "--time-zone", "Asia/Tokyo", *IMAGE, "--ds", "yesterday"
    )
    assert outcome.code == 0
    ray_cron_job = list(yaml.safe_load_all(outcome.out))[-1]
    check(ray_cron_job)
    assert ray_cron_job["spec"]["timeZone"] == "Asia/Tokyo"
    assert ray_cron_job["spec"]["jobTemplate"]["entrypoint"].endswith("--ds yesterday")
    assert len(re.findall(r"^next run  \d{4}-\d\d-\d\dT02:00:00\+09:00$", outcome.err, re.MULTILINE)) == 3


def test_schedule_for_systemd_writes_a_timer_and_its_service(
    herd: Herd, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(limits={"drain_s": 45})
    options = ("--target", "systemd", "--set", "pool.max=2", "--output", tmp_path / "units", "--json")
    document = json.loads(herd("schedule", path, "--cron", "*/30 8 * * mon", *options).out)
    assert (document["cron"], len(document["next_runs"])) == ("*/30 8 * * 1", 3)
    timer, service = ((tmp_path / "units" / f"herd-cows.{kind}").read_text() for kind in ("timer", "service"))
    assert "OnCalendar=Mon *-*-* 08:00,30:00\n" in timer
    assert f" run {path} --set pool.max=2\n" in service
    assert "TimeoutStopSec=75\n" in service


def test_schedule_for_crontab_prints_a_line(herd: Herd, write: Callable[..., Path]) -> None:
    outcome = herd("schedule", write(**DATED), "--cron", "0 2 * * *", "--target", "crontab")
    assert re.fullmatch(
        r"0 2 \* \* \* cd \S+ && \S+.* run \S+job\.yaml --ds today >> \S+/herd-cows-ds\.log 2>&1\n", outcome.out
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cron", "0 2 * *", *IMAGE), "it has 4 fields"),
        (("--cron", "0 2 * * *"), "No image is named"),
        (("--cron", "0 2 * * *", "--target", "crontab", "--time-zone", "UTC"), "--time-zone has no meaning"),
        (("--cron", "0 2 * * *", "--target", "systemd", "--suspend"), "--suspend has no meaning"),
        (("--cron", "0 2 * * *", "--target", "systemd", *IMAGE), "--image has no meaning"),
        (("--cron", "0 2 * * *", "--target", "systemd", "--ds", "today"), "the job does not use the date"),
    ],
)
def test_schedule_of_what_cannot_be_is_refused_in_one_sentence(
    herd: Herd, write: Callable[..., Path], options: tuple[str, ...], said: str
) -> None:
    outcome = herd("schedule", write(), *options)
    assert outcome.code == 2
    assert said in outcome.err


def test_submission_run_dry_prints_what_would_be_created(write: Callable[..., Path]) -> None:
    @click.command()
    @click.argument("job")
    @kubernetes_options
    def submit(job: str, **options: Any) -> None:
        submit_by_kubectl(job, (), None, False, options)

    done = CliRunner().invoke(submit, [str(write()), *IMAGE, "--dry-run", "--context", "none"], catch_exceptions=False)
    config_map, ray_job = yaml.safe_load_all(done.stdout)
    check(ray_job)
    assert ray_job["metadata"]["generateName"] == "herd-cows-"
    assert ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"][-1]["configMap"] == {
        "name": config_map["metadata"]["name"]
    }


def test_submit_with_kubernetes_prints_the_manifests_of_a_dry_run(herd: Herd, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        "{name: k, input: {uri: 's3://b/x/'}, prompt: {user: hi}, engine: {kind: echo}, output: {uri: 's3://b/out'}}"
    )
    done = herd("submit", job, "--kubernetes", "--dry-run", "--image", "registry/herd:1", "--env", "A=1")
    assert done.code == 0
    assert [o["kind"] for o in yaml.safe_load_all(done.out)][-1] == "RayJob"


@pytest.mark.parametrize(
    ("options", "named"),
    [(["--image", "x/y:1"], "--image"), (["--kubernetes", "--image", "x/y:1", "--no-follow"], "--no-follow")],
)
def test_submit_refuses_options_of_the_other_kind_of_cluster(
    herd: Herd, tmp_path: Path, options: list[str], named: str
) -> None:
    done = herd("submit", tmp_path / "job.yaml", *options)
    assert done.code == 2 and named.split("--no-")[-1] in done.err
