"""What a cluster's owner decides and a job does not: images, node shapes, volumes, accounts. All checked, no secret values."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cluster.portable import is_secret
from pipeline.config import RunConfig
from pipeline.errors import ConfigError

CACHE_PATH = "/cache"
JOB_PATH = "/etc/herd"
# where the label of a node says that it is a spot node, by who makes the nodes
SPOT_LABELS = {
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
    "eks": ("eks.amazonaws.com/capacityType", "SPOT"),
    "gke": ("cloud.google.com/gke-spot", "true"),
}
# `nvidia.com/gpu.product` as NVIDIA's GPU feature discovery writes it
GPU_PRODUCTS = {"H100": "NVIDIA-H100-80GB-HBM3", "H200": "NVIDIA-H200"}

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti|k|M|G|T)?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Cache:
    """Where pods keep models: an `emptyDir` of a size, a folder of the node, or a claim; `create` is the size of a claim
    that is yet to be made."""

    kind: str
    value: str
    create: str | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A Kubernetes cluster as its owner offers it. Quantities are Kubernetes' (`1800Gi`), times are seconds."""

    image: str
    namespace: str | None = None
    gpus_per_node: int = 8
    nodes: int | None = None
    node_cpus: int | None = None
    node_memory: str | None = None
    shm: str | None = None
    spot: str | None = None
    node_selector: Pairs = ()
    cache: Cache = Cache("empty", "1Ti")
    mounts: Pairs = ()
    service_account: str | None = None
    secrets: tuple[str, ...] = ()
    env: Pairs = ()
    labels: Pairs = ()
    retries: int = 2
    deadline_s: int | None = None
    ttl_s: int = 3600

    def __post_init__(self) -> None:
        _match(_NAMESPACE, self.namespace, "--namespace", "a Kubernetes namespace")
        _match(_QUANTITY, self.node_memory, "--node-memory", "a quantity such as 1800Gi")
        _match(_QUANTITY, self.shm, "--shm", "a quantity such as 256Gi")
        _match(_OBJECT_NAME, self.service_account, "--service-account", "a Kubernetes name")
        for secret in self.secrets:
            _match(_OBJECT_NAME, secret, "--secret", "the name of a Kubernetes secret")
        for where, labels in (("--label", self.labels), ("--node-selector", self.node_selector)):
            for key, value in labels:
                _match(_LABEL_KEY, key, where, "a Kubernetes label")
                _match(_LABEL_VALUE, value, where, "the value of a Kubernetes label")
        for claim, path in self.mounts:
            _match(_OBJECT_NAME, claim, "--mount", "the name of a volume claim")
            if not path.startswith("/") or path.rstrip("/") in ("", CACHE_PATH, JOB_PATH, "/dev/shm") or ":" in path:  # noqa: S108
                raise ConfigError(f"`{path}` is no folder to mount a claim at", where="--mount")
        for key, _ in self.env:
            _match(_ENV_NAME, key, "--env", "the name of an environment variable")
            if is_secret(key):
                raise ConfigError(
                    f"{key} looks like a credential, and manifests hold none",
                    where="--env",
                    todo="Put it into a Kubernetes secret and name that with --secret, or use --service-account.",
                )


def _match(pattern: re.Pattern[str], value: str | None, where: str, what: str) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise ConfigError(f"`{value}` is not {what}", where=where)


def parse_pairs(given: Iterable[str], where: str, separator: str = "=") -> Pairs:
    """`KEY=VALUE` options as pairs.

    Raises:
        ConfigError: one has no separator.
    """
    pairs = []
    for text in given:
        key, found, value = text.partition(separator)
        if not found or not key:
            raise ConfigError(f"`{text}` is not of the form KEY{separator}VALUE", where=where)
        pairs.append((key, value))
    return tuple(pairs)


def parse_cache(text: str) -> Cache:
    """`empty:SIZE`, `host:/FOLDER`, `claim:NAME`, or `claim:NAME:SIZE` for a claim that is to be made.

    Raises:
        ConfigError: it is none of these.
    """
    kind, _, rest = text.partition(":")
    if kind == "empty" and _QUANTITY.fullmatch(rest):
        return Cache("empty", rest)
    if kind == "host" and rest.startswith("/") and ":" not in rest:
        return Cache("host", rest)
    name, _, size = rest.partition(":")
    if kind == "claim" and _OBJECT_NAME.fullmatch(name) and (not size or _QUANTITY.fullmatch(size)):
        return Cache("claim", name, size or None)
    raise ConfigError(
        f"`{text}` is no place for models",
        where="--cache",
        todo="Give empty:1Ti, host:/mnt/nvme, claim:NAME, or claim:NAME:2Ti to have the claim made.",
    )


def check_reachable(config: RunConfig, site: Site) -> None:
    """Raises `ConfigError` if the job names a file or folder of the machine it was written on, which no pod has. Folders
    below a mounted claim are fine."""
    named = [("input.uri", uri) for uri in config.input.uri] + [("output.uri", config.output.uri)]
    if config.cache.uri:
        named.append(("cache.uri", config.cache.uri))
    if config.model and config.model.startswith((".", "/", "~")):
        named.append(("model", config.model))
    mounted = tuple(f"{path.rstrip('/')}/" for _, path in site.mounts)
    for key, uri in named:
        if "://" not in uri and not (uri.startswith("/") and f"{uri}/".startswith(mounted) and ".." not in uri):
            raise ConfigError(
                f"The cluster's pods have no `{uri}`",
                where=key,
                todo="Give an s3:// address, or a folder of a volume claim that is mounted with --mount CLAIM:/FOLDER.",
            )
