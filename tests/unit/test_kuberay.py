"""KubeRay objects: against KubeRay's own definitions, Ray's own autoscaler, and what a run needs of its nodes."""

import copy
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.manifests.kuberay import JobToSend, ray_cluster_objects, ray_cron_job_objects, ray_job_objects
from cluster.manifests.site import Cache, Site, parse_cache, parse_pairs
from cluster.models import with_profile
from pipeline.errors import ConfigError
from tests.unit.helpers import job
from tests.unit.kuberay_schema import check

S3 = {"input": {"uri": "s3://b/in"}, "output": {"uri": "s3://b/out"}}
PLAIN = Site("registry/herd:1")
FULL = Site(
    "registry/herd:1",
    namespace="batch",
    spot="karpenter",
    node_selector=(("node.kubernetes.io/instance-type", "p5.48xlarge"),),
    cache=Cache("claim", "models", "2Ti"),
    mounts=(("photos", "/photos"),),
    service_account="herd",
    secrets=("aws", "hub"),
    env=(("AWS_REGION", "us-west-2"),),
    labels=(("kueue.x-k8s.io/queue-name", "gpu"),),
    deadline_s=86_400,
)


def sent(
    model: str | None = "maverick", *, ds: str | None = None, text: str = "name: x\n", **changes: Any
) -> JobToSend:
    """A job to send: on H100s where it has a model, else on the CPU with the echo engine."""
    engine: dict[str, Any] = {"engine": {"kind": "vllm"}, "pool": {"accelerator": "H100"}} if model else {}
    return JobToSend(with_profile(job(**{**S3, "name": "cows", **engine, "model": model, **changes})), text, ds)


def cron(job: JobToSend, site: Site) -> list[dict[str, Any]]:
    return ray_cron_job_objects(job, site, "0 2 * * *", time_zone="Europe/Paris")


def spec_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The cluster's specification, wherever it stands."""
    spec = objects[-1]["spec"]
    spec = spec.get("jobTemplate", spec)
    return dict(spec.get("rayClusterSpec", spec))


def pods(cluster: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]


@pytest.mark.parametrize("site", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("model", ["scout", "scout-int4", "maverick", "maverick-bf16", None])
@pytest.mark.parametrize("make", [ray_job_objects, ray_cluster_objects, cron])
def test_kuberay_objects_satisfy_kuberays_own_definitions(
    make: Callable[[JobToSend, Site], list[dict[str, Any]]], model: str | None, site: Site
) -> None:
    check(make(sent(model), site)[-1])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "backofLimit"), 3),
        (("spec", "rayClusterSpec", "enableAutoscaling"), True),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "envFromm"), []),
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ],
)
def test_kuberay_definitions_as_the_tests_read_them_refuse_what_kubernetes_would_drop(path: Any, value: Any) -> None:
    wrong = copy.deepcopy(ray_job_objects(sent(), FULL)[-1])
    place = wrong
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(wrong)


@pytest.mark.parametrize(
    ("model", "pool", "nodes"),
    [
        ("maverick", {"min": 2, "max": 4}, (2, 4)),
        ("scout", {"min": 2, "max": 5}, (1, 3)),
        ("maverick-bf16", {}, (2, 2)),
    ],
)
def test_ray_cluster_as_rays_own_autoscaler_reads_it_offers_what_engines_ask_for(
    model: str, pool: dict[str, Any], nodes: tuple[int, int]
) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    site = Site("registry/herd:1", namespace="batch")
    (cluster,) = ray_cluster_objects(sent(model, pool={"accelerator": "H100", **pool}), site)
    types = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    head, workers = types["headgroup"], types["h100"]
    assert (head["resources"]["CPU"], head["resources"]["GPU"], head["max_workers"]) == (0, 0, 0)
    assert (workers["resources"]["GPU"], workers["resources"]["accelerator_type:H100"]) == (8, 1)
    assert (workers["min_workers"], workers["max_workers"]) == nodes
    assert workers["labels"]["ray.io/accelerator-type"] == "H100"


def test_ray_cluster_autoscales_by_version_2_only_where_the_pool_may_grow() -> None:
    grows = spec_of(ray_job_objects(sent(pool={"accelerator": "H100", "min": 1, "max": 2}), PLAIN))
    assert grows["enableInTreeAutoscaling"] is True
    assert grows["autoscalerOptions"]["version"] == "v2"
    assert "enableInTreeAutoscaling" not in spec_of(ray_job_objects(sent(), PLAIN))


def test_ray_cluster_workers_take_a_whole_gpu_node_and_the_head_takes_none() -> None:
    head, worker = pods(spec_of(ray_job_objects(sent(), PLAIN)))
    (container,) = worker["containers"]
    assert (
        container["resources"]["limits"]["nvidia.com/gpu"]
        == container["resources"]["requests"]["nvidia.com/gpu"]
        == "8"
    )
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in worker["tolerations"]
    assert worker["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    shm = next(v["emptyDir"] for v in worker["volumes"] if v["name"] == "shm")
    assert shm == {"medium": "Memory", "sizeLimit": "256Gi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert "nvidia.com/gpu" not in str(head)


def test_ray_cluster_on_the_cpu_asks_for_no_gpu_and_no_gpu_node() -> None:
    head, worker = pods(spec_of(ray_job_objects(sent(None), PLAIN)))
    assert "nvidia" not in str([head, worker])
    assert "tolerations" not in worker and "nodeSelector" not in worker


def test_ray_cluster_with_spot_keeps_the_head_off_spot_nodes() -> None:
    cluster = spec_of(ray_job_objects(sent(), FULL))
    head, worker = pods(cluster)
    assert worker["nodeSelector"] == {
        "node.kubernetes.io/instance-type": "p5.48xlarge",
        "karpenter.sh/capacity-type": "spot",
    }
    rules = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert rules == [
        {"matchExpressions": [{"key": "karpenter.sh/capacity-type", "operator": "NotIn", "values": ["spot"]}]}
    ]
    assert "nodeSelector" not in head
    assert cluster["workerGroupSpecs"][0]["labels"]["ray.io/market-type"] == "spot"


def test_pods_wait_longer_for_a_run_to_stop_than_it_takes_to_drain() -> None:
    for pod in pods(spec_of(ray_job_objects(sent(limits={"drain_s": 120.5}), PLAIN))):
        environment = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        assert float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) == 120.5
        assert pod["terminationGracePeriodSeconds"] == int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) == 151


def test_ray_job_resumes_after_failures_and_takes_its_cluster_down() -> None:
    spec = ray_job_objects(sent(ds="today"), FULL)[-1]["spec"]
    assert spec["entrypoint"] == "herd run /etc/herd/job.yaml --address auto --ds today"
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (2, 86_400, 3600)
    assert spec["shutdownAfterJobFinishes"] is True


def test_ray_job_reads_its_file_from_a_config_map_of_just_that_content() -> None:
    text = "prompt: {user: 'a: \"b\" {{ c }}'}\n"
    claim, config_map, ray_job = ray_job_objects(sent(text=text), FULL)
    assert config_map["data"] == {"job.yaml": text}
    assert config_map["immutable"] is True
    head, worker = pods(spec_of([ray_job]))
    assert {"name": "job", "configMap": {"name": config_map["metadata"]["name"]}} in head["volumes"]
    assert {"name": "job", "mountPath": "/etc/herd", "readOnly": True} in head["containers"][0]["volumeMounts"]
    assert "configMap" not in str(worker)
    other = ray_job_objects(sent(text=text + "#\n"), FULL)[1]
    assert other["metadata"]["name"] != config_map["metadata"]["name"]
    assert {o["metadata"]["namespace"] for o in (claim, config_map, ray_job)} == {"batch"}


def test_ray_job_file_over_the_size_of_a_config_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="exceeds the 1 MiB"):
        ray_job_objects(sent(text="x" * 2**20), PLAIN)


def test_model_cache_is_on_every_node_and_models_are_looked_for_in_it() -> None:
    claim, *_, ray_job = ray_job_objects(sent(), FULL)
    assert claim["spec"] == {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Ti"}}}
    for pod in pods(spec_of([ray_job])):
        assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in pod["volumes"]
        environment = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}
        assert environment["HERD_CACHE"].startswith(f"{mounts['cache']}/")
        assert environment["HF_HOME"].startswith(f"{mounts['cache']}/")
        assert mounts["mount-0"] == "/photos"


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("empty:500Gi", {"emptyDir": {"sizeLimit": "500Gi"}}),
        ("host:/mnt/nvme", {"hostPath": {"path": "/mnt/nvme", "type": "DirectoryOrCreate"}}),
        ("claim:models", {"persistentVolumeClaim": {"claimName": "models"}}),
    ],
)
def test_model_cache_may_be_an_empty_folder_the_nodes_own_or_a_claim(text: str, volume: dict[str, Any]) -> None:
    objects = ray_job_objects(sent(), Site("registry/herd:1", cache=parse_cache(text)))
    assert [o["kind"] for o in objects] == ["ConfigMap", "RayJob"]
    assert all({"name": "cache", **volume} in pod["volumes"] for pod in pods(spec_of(objects)))


def test_credentials_come_by_the_names_of_secrets_and_accounts_only() -> None:
    for pod in pods(spec_of(ray_job_objects(sent(), FULL))):
        assert pod["serviceAccountName"] == "herd"
        assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "aws"}}, {"secretRef": {"name": "hub"}}]
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD", "openai_api_key"):
        with pytest.raises(ConfigError, match="looks like a credential") as caught:
            Site("registry/herd:1", env=((name, "hunter2"),))
        assert "hunter2" not in str(caught.value)


def test_labels_stand_on_the_object_and_not_on_its_pods() -> None:
    ray_job = ray_job_objects(sent(), FULL)[-1]
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert "kueue" not in str(ray_job["spec"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": (("a b", "c"),)},
        {"labels": (("a", "c d"),)},
        {"labels": (("a", "x" * 64),)},
        {"node_selector": (("a", "'; drop"),)},
        {"namespace": "Batch"},
        {"secrets": ("AWS Keys",)},
        {"service_account": "a/b"},
        {"node_memory": "lots"},
        {"shm": "0"},
        {"env": (("A B", "c"),)},
        {"mounts": (("photos", "photos"),)},
        {"mounts": (("photos", "/dev/shm"),)},
    ],
)
def test_site_with_what_kubernetes_would_refuse_is_refused_first(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Site("registry/herd:1", **wrong)


@pytest.mark.parametrize("text", ["", "empty:", "host:models", "claim:", "claim:Models", "claim:m:big", "nfs:/x"])
def test_parse_cache_of_no_known_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no place for models"):
        parse_cache(text)


def test_parse_pairs_keeps_what_follows_the_first_separator() -> None:
    assert parse_pairs(["A=b=c", "D="], "--env") == (("A", "b=c"), ("D", ""))
    with pytest.raises(ConfigError, match="not of the form KEY=VALUE"):
        parse_pairs(["A"], "--env")


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {"uri": "data/*.parquet"}},
        {"input": {"uri": "/data"}},
        {"output": {"uri": "out"}},
        {"output": {"uri": "/photos/../etc"}},
        {"output": {"uri": "/photosets"}},
        {"cache": {"uri": "cache"}},
        {"model": "./model"},
    ],
)
def test_job_over_folders_that_no_pod_has_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pods have no"):
        ray_job_objects(sent(**changes), FULL)


def test_job_over_a_mounted_claim_is_accepted() -> None:
    job_there = sent(input={"uri": "/photos/in"}, output={"uri": "/photos/out"}, model="/photos/model")
    assert ray_job_objects(job_there, FULL)[-1]["kind"] == "RayJob"


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]*", fullmatch=True))
def test_job_name_becomes_a_name_that_kubernetes_and_kuberay_take(name: str) -> None:
    made = sent(name=name).name
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= 38


def test_job_names_that_differ_become_names_that_differ() -> None:
    names = ["cows", "Cows", "co.ws", "co-ws", "co_ws", "x" * 60, "x" * 61, "cows-"]
    assert len({sent(name=name).name for name in names}) == len(names)
    assert sent(name="cows").name == "herd-cows"


def test_ray_job_with_a_generated_name_has_no_other() -> None:
    metadata = ray_job_objects(sent(), PLAIN, generate_name=True)[-1]["metadata"]
    assert metadata["generateName"] == "herd-cows-"
    assert "name" not in metadata


def test_ray_cron_job_holds_its_times_zone_and_job() -> None:
    spec = ray_cron_job_objects(sent(ds="yesterday"), PLAIN, "0 2 * * *", time_zone="Europe/Paris", suspend=True)[-1][
        "spec"
    ]
    assert (spec["schedule"], spec["timeZone"], spec["suspend"]) == ("0 2 * * *", "Europe/Paris", True)
    assert spec["jobTemplate"]["entrypoint"].endswith("--ds yesterday")
    assert "timeZone" not in ray_cron_job_objects(sent(), PLAIN, "0 2 * * *")[-1]["spec"]


def test_objects_name_the_ray_that_is_installed() -> None:
    import ray

    assert spec_of(ray_job_objects(sent(), PLAIN))["rayVersion"] == ray.__version__
