"""KubeRay objects of a job: RayJob, RayCluster, RayCronJob, and the ConfigMap and claim beside them. Pure.

Fields are those of KubeRay's resource definitions, version v1; tests hold every object against these. Limits on names are
those of KubeRay's own validation: the operator appends to a RayJob's name that of its cluster, and to a RayCronJob's name
that of each RayJob.
"""

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cluster.manifests.nodes import count_nodes
from cluster.manifests.pods import head_template, object_labels, worker_template
from cluster.manifests.site import JOB_PATH, Site, check_reachable
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

MAX_NAME = 38  # 50 for a RayCluster, less 6 for a RayJob's suffix and 6 for a RayCronJob's
MAX_CONFIG_MAP_BYTES = 2**20
IDLE_S = 600  # a node that stands idle for so long is given back; an engine takes minutes to load


@dataclass(frozen=True, slots=True)
class JobToSend:
    """A job that is to run elsewhere: its settings with the model's profile, its file as text, and the day (`today`, a date)
    that a run is told, or none where the job asks for no day."""

    config: RunConfig
    text: str
    ds: str | None = None

    @property
    def name(self) -> str:
        """The job's name as Kubernetes takes it: a DNS label of at most 38 characters. A name that had to be changed gets
        a digest, so that two jobs never share one."""
        wanted = self.config.name
        name = "herd-" + re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
        if name == f"herd-{wanted}" and len(name) <= MAX_NAME:
            return name
        return f"{name[: MAX_NAME - 7].strip('-')}-{hashlib.sha256(wanted.encode()).hexdigest()[:6]}"

    @property
    def config_map_name(self) -> str:
        """By the job's name and content, so that a changed job file never reaches a run that is under way."""
        return f"{self.name}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"

    @property
    def command(self) -> list[str]:
        """What runs on the head. The same command again resumes the run."""
        day = ["--ds", self.ds] if self.ds else []
        return ["herd", "run", f"{JOB_PATH}/job.yaml", "--address", "auto", *day]


def ray_job_objects(job: JobToSend, site: Site, *, generate_name: bool = False) -> list[dict[str, Any]]:
    """A RayJob that brings its own cluster, with what it needs before it. With `generate_name` each creation gets a name of
    its own.

    Raises:
        ConfigError: the job cannot run on such a cluster.
    """
    check_reachable(job.config, site)
    metadata = _metadata(job.name, site)
    if generate_name:
        metadata = {"generateName": f"{job.name}-", **{k: v for k, v in metadata.items() if k != "name"}}
    return [*_companions(job, site), _object("RayJob", metadata, _ray_job_spec(job, site))]


def ray_cron_job_objects(
    job: JobToSend, site: Site, schedule: str, *, time_zone: str | None = None, suspend: bool = False
) -> list[dict[str, Any]]:
    """A RayCronJob that makes a RayJob at each time of a cron expression, with what it needs before it. Raises as
    `ray_job_objects`."""
    check_reachable(job.config, site)
    zone = {"timeZone": time_zone} if time_zone else {}
    spec = {"schedule": schedule, **zone, "suspend": suspend, "jobTemplate": _ray_job_spec(job, site)}
    return [*_companions(job, site), _object("RayCronJob", _metadata(job.name, site), spec)]


def ray_cluster_objects(job: JobToSend, site: Site) -> list[dict[str, Any]]:
    """A cluster that stays, of the size that the job wants, to which jobs are submitted. Raises as `ray_job_objects`."""
    spec = _ray_cluster_spec(job, site, config_map=None)
    return [*_claim(site), _object("RayCluster", _metadata(job.name, site), spec)]


def _object(kind: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": dict(metadata), "spec": dict(spec)}


def _metadata(name: str, site: Site, *, own: bool = True) -> dict[str, Any]:
    namespace = {"namespace": site.namespace} if site.namespace else {}
    return {"name": name, **namespace, "labels": {**object_labels(name), **(dict(site.labels) if own else {})}}


def _companions(job: JobToSend, site: Site) -> list[dict[str, Any]]:
    if len(job.text.encode()) >= MAX_CONFIG_MAP_BYTES:
        raise ConfigError("The job file exceeds the 1 MiB of a ConfigMap", where="job", todo="Shorten its prompts.")
    metadata = _metadata(job.name, site, own=False)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**metadata, "name": job.config_map_name},
        "immutable": True,
        "data": {"job.yaml": job.text},
    }
    return [*_claim(site), config_map]


def _claim(site: Site) -> list[dict[str, Any]]:
    if site.cache.create is None:
        return []
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(site.cache.value, site, own=False),
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": site.cache.create}}},
    }
    return [claim]


def _ray_job_spec(job: JobToSend, site: Site) -> dict[str, Any]:
    deadline = {"activeDeadlineSeconds": site.deadline_s} if site.deadline_s else {}
    return {
        "entrypoint": shlex.join(job.command),
        "submissionMode": "K8sJobMode",
        "backoffLimit": site.retries,
        **deadline,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": site.ttl_s,
        "rayClusterSpec": _ray_cluster_spec(job, site, job.config_map_name),
    }


def _ray_cluster_spec(job: JobToSend, site: Site, config_map: str | None) -> dict[str, Any]:
    config = job.config
    nodes = count_nodes(config, site.gpus_per_node, site.nodes)
    grows: dict[str, Any] = {}
    if nodes.max > nodes.min:
        grows = {
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2", "upscalingMode": "Default", "idleTimeoutSeconds": IDLE_S},
        }
    accelerator = config.pool.accelerator
    labels = {"ray.io/market-type": "spot" if site.spot else "on-demand"}
    resources: dict[str, Any] = {}
    if accelerator:
        labels["ray.io/accelerator-type"] = accelerator
        # the autoscaler must know before a node is there that it would bring what engines ask for
        resources = {"resources": {f"accelerator_type:{accelerator}": "1"}}
    workers = {
        "groupName": accelerator.lower() if accelerator else "cpu",
        "replicas": nodes.min,
        "minReplicas": nodes.min,
        "maxReplicas": nodes.max,
        "labels": labels,
        **resources,
        "rayStartParams": {},
        "template": worker_template(config, site, job.name),
    }
    # no CPU on the head: engines, readers and writers stay off the node that all depends on
    head_params = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"}  # noqa: S104
    return {
        "rayVersion": version("ray"),
        **grows,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "labels": {"ray.io/market-type": "on-demand"},
            "rayStartParams": head_params,
            "template": head_template(config, site, job.name, config_map),
        },
        "workerGroupSpecs": [workers],
    }
