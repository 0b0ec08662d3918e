"""A file for Ray's cluster launcher (`ray up`) on AWS: an on-demand head without engines, spot or on-demand GPU workers in
the image's container. Pure."""

import re
import shlex
from dataclasses import dataclass
from typing import Any

from cluster.manifests.kuberay import IDLE_S, JobToSend
from cluster.manifests.nodes import count_nodes
from cluster.manifests.pods import USER_ID, environment, worker_shape
from cluster.manifests.site import CACHE_PATH, Site
from pipeline.errors import ConfigError

# eight GPUs each, by accelerator; None: engines on the CPU
INSTANCE_TYPES = {"H100": "p5.48xlarge", "H200": "p5en.48xlarge", None: "m7i.4xlarge"}
HEAD_INSTANCE_TYPE = "m7i.2xlarge"
NODE_CACHE = "/opt/dlami/nvme/herd"  # AWS's Deep Learning images put the instance's own NVMe disks there

NOTES = (
    "ray up FILE starts it; ray down FILE ends it. Not yet run on AWS by Herd's own tests.",
    "Engines on one node need no EFA. For an engine that spans nodes add a placement group (--placement-group), and network "
    "interfaces of InterfaceType efa to the workers' node_config, and an image with the EFA libraries.",
    "The AMI needs an NVIDIA driver and Docker, as AWS's Deep Learning Base GPU images have.",
)


@dataclass(frozen=True, slots=True)
class Aws:
    """Where on AWS: all of it names of things that exist there, no credentials."""

    ami: str
    region: str = "us-west-2"
    instance_type: str | None = None
    instance_profile: str | None = None
    """ARN of the instance profile by which nodes reach S3."""
    placement_group: str | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"ami-[0-9a-f]+", self.ami):
            raise ConfigError(
                f"`{self.ami}` is no AMI", where="--ami", todo="Give one of your region: ami-0123456789abcdef0."
            )
        if not re.fullmatch(r"[a-z]+(-[a-z]+)+-[0-9]+", self.region):
            raise ConfigError(f"`{self.region}` is no region of AWS", where="--region", todo="Such as us-west-2.")


def launcher_config(job: JobToSend, site: Site, aws: Aws) -> dict[str, Any]:
    """What `ray up` reads, for the nodes that the job's pool takes.

    Raises:
        ConfigError: the job does not fit such nodes, or no instance type is known for them.
    """
    config, accelerator = job.config, job.config.pool.accelerator
    nodes = count_nodes(config, site.gpus_per_node, site.nodes)
    instance_type = aws.instance_type
    if instance_type is None and (accelerator is None or site.gpus_per_node == 8):
        instance_type = INSTANCE_TYPES.get(accelerator)
    if instance_type is None:
        raise ConfigError(
            f"No instance type is known with {site.gpus_per_node} {accelerator}",
            where="--instance-type",
            todo="Name one.",
        )
    workers = _node(instance_type, aws)
    if site.spot:
        workers["InstanceMarketOptions"] = {"MarketType": "spot"}
    if aws.placement_group:
        workers["Placement"] = {"GroupName": aws.placement_group}
    labels = {"ray.io/market-type": "spot" if site.spot else "on-demand"}
    resources = {}
    if accelerator:
        labels["ray.io/accelerator-type"] = accelerator
        resources = {"GPU": site.gpus_per_node, f"accelerator_type:{accelerator}": 1}
    shm = worker_shape(config, site).shm.removesuffix("i").lower()  # docker writes 256g where Kubernetes writes 256Gi
    options = ["--ulimit nofile=65536:65536", f"--shm-size={shm}", f"-v {NODE_CACHE}:{CACHE_PATH}"]
    options += [f"-e {shlex.quote(f'{key}={value}')}" for key, value in environment(config, site).items()]
    return {
        "cluster_name": job.name,
        "max_workers": nodes.max,
        "idle_timeout_minutes": IDLE_S // 60,
        "provider": {"type": "aws", "region": aws.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {"image": site.image, "container_name": "herd", "pull_before_run": True, "run_options": options},
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": _node(HEAD_INSTANCE_TYPE, aws)},
            "workers": {
                "min_workers": nodes.min,
                "max_workers": nodes.max,
                "resources": resources,
                "labels": labels,
                "node_config": workers,
            },
        },
        # outside the container, whose user is not root
        "initialization_commands": [f"sudo install -d -o {USER_ID} -g {USER_ID} {NODE_CACHE}"],
        "setup_commands": [],
        "head_setup_commands": ["pip install --user 'boto3>=1.35'"],  # the launcher's own part on the head makes nodes
    }


def _node(instance_type: str, aws: Aws) -> dict[str, Any]:
    node: dict[str, Any] = {
        "InstanceType": instance_type,
        "ImageId": aws.ami,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 300, "VolumeType": "gp3"}}],
    }
    if aws.instance_profile:
        node["IamInstanceProfile"] = {"Arn": aws.instance_profile}
    return node
