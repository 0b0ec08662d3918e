"""Pod templates of a Ray cluster on Kubernetes: a head without engines, and workers with GPUs. Pure."""

import math
from dataclasses import dataclass
from typing import Any

from cluster.manifests.site import CACHE_PATH, GPU_PRODUCTS, JOB_PATH, SPOT_LABELS, Site
from pipeline.config import RunConfig

STOP_MARGIN_S = 30  # beyond limits.drain_s: to write down where the run stands and to leave
USER_ID = 10001  # of the images; a number, since Kubernetes cannot tell from a name that a user is not root
HEAD_CPUS, HEAD_MEMORY, HEAD_SHM = 4, "16Gi", "4Gi"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one worker pod takes of its node."""

    cpus: int
    memory: str
    shm: str
    gpus: int


def worker_shape(config: RunConfig, site: Site) -> Shape:
    """A p5.48xlarge (192 CPUs, 2 TiB) less what Kubernetes' own pods need, or a small node for engines on the CPU; the
    site's own figures go first."""
    has_gpus = config.pool.accelerator is not None
    cpus, memory, shm = (180, "1800Gi", "256Gi") if has_gpus else (8, "32Gi", "8Gi")
    return Shape(
        site.node_cpus or cpus, site.node_memory or memory, site.shm or shm, site.gpus_per_node if has_gpus else 0
    )


def head_template(config: RunConfig, site: Site, name: str, config_map: str | None) -> dict[str, Any]:
    """The head's pod: Ray's own services and `herd run` itself, on a node that is not taken away. `config_map` holds the
    job file, mounted read-only; none for a cluster without a job."""
    template = _template(config, site, name, "ray-head", Shape(HEAD_CPUS, HEAD_MEMORY, HEAD_SHM, 0))
    spec = template["spec"]
    if config_map is not None:
        spec["volumes"].append({"name": "job", "configMap": {"name": config_map}})
        mount = {"name": "job", "mountPath": JOB_PATH, "readOnly": True}
        spec["containers"][0]["volumeMounts"].append(mount)
    if site.spot:
        key, value = SPOT_LABELS[site.spot]
        terms = [{"matchExpressions": [{"key": key, "operator": "NotIn", "values": [value]}]}]
        spec["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        }
    return template


def worker_template(config: RunConfig, site: Site, name: str) -> dict[str, Any]:
    """A worker's pod, which takes its node's GPUs as a whole."""
    shape = worker_shape(config, site)
    template = _template(config, site, name, "ray-worker", shape)
    spec = template["spec"]
    spec["automountServiceAccountToken"] = False  # only the head speaks to Kubernetes
    selector = dict(site.node_selector)
    if not selector and shape.gpus and config.pool.accelerator in GPU_PRODUCTS:
        selector = {"nvidia.com/gpu.product": GPU_PRODUCTS[config.pool.accelerator]}
    tolerations = []
    if shape.gpus:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if site.spot:
        key, value = SPOT_LABELS[site.spot]
        selector[key] = value
        tolerations.append({"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"})
    if selector:
        spec["nodeSelector"] = selector
    if tolerations:
        spec["tolerations"] = tolerations
    return template


def _template(config: RunConfig, site: Site, name: str, container: str, shape: Shape) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shape.shm}}]
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    volumes.append({"name": "cache", **_cache_volume(site)})
    mounts.append({"name": "cache", "mountPath": CACHE_PATH})
    for number, (claim, path) in enumerate(site.mounts):
        volumes.append({"name": f"mount-{number}", "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": f"mount-{number}", "mountPath": path})
    resources: dict[str, Any] = {"cpu": str(shape.cpus), "memory": shape.memory}
    if shape.gpus:
        resources["nvidia.com/gpu"] = str(shape.gpus)
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": stop_seconds(config),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": site.image,
                "resources": {"limits": resources, "requests": dict(resources)},
                "env": [{"name": key, "value": value} for key, value in environment(config, site).items()],
                **({"envFrom": [{"secretRef": {"name": s}} for s in site.secrets]} if site.secrets else {}),
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if site.service_account:
        pod["serviceAccountName"] = site.service_account
    annotations = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
    }
    return {"metadata": {"labels": object_labels(name), "annotations": annotations}, "spec": pod}


def environment(config: RunConfig, site: Site) -> dict[str, str]:
    """Environment of every node: caches, and how long Ray lets a run that is told to stop go on."""
    return {
        "HERD_CACHE": f"{CACHE_PATH}/herd",
        "HF_HOME": f"{CACHE_PATH}/huggingface",
        # how long a node that is taken away drains, and how long `ray job stop` waits before it kills
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{config.limits.drain_s:g}",
        "RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds(config)),
        "RAY_USAGE_STATS_ENABLED": "0",
        **dict(site.env),
    }


def stop_seconds(config: RunConfig) -> int:
    """Seconds from the word to stop to the kill: `limits.drain_s` and a margin."""
    return math.ceil(config.limits.drain_s) + STOP_MARGIN_S


def object_labels(name: str) -> dict[str, str]:
    """Labels by which `kubectl -l` finds everything of a job."""
    return {
        "app.kubernetes.io/name": "herd",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "herd",
    }


def _cache_volume(site: Site) -> dict[str, Any]:
    if site.cache.kind == "host":
        return {"hostPath": {"path": site.cache.value, "type": "DirectoryOrCreate"}}
    if site.cache.kind == "claim":
        return {"persistentVolumeClaim": {"claimName": site.cache.value}}
    return {"emptyDir": {"sizeLimit": site.cache.value}}
