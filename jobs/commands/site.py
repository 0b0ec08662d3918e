"""Options that describe a cluster, and the `Site` that they make."""

import os
from collections.abc import Callable, Collection
from typing import Any

import click
from click.core import ParameterSource

from cluster.manifests.site import SPOT_LABELS, Site, parse_cache, parse_pairs
from cluster.portable import forwarded
from pipeline.errors import ConfigError

_OPTIONS = (
    click.option("--image", help="Image that the nodes run; see --kind dockerfile-gpu of `herd cluster render`."),
    click.option("--namespace", help="Kubernetes namespace."),
    click.option("--nodes", type=click.IntRange(min=1), help="Worker nodes. Default: what the job's pool takes."),
    click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True, help="GPUs of a node."),
    click.option(
        "--node-cpus", type=click.IntRange(min=1), help="CPUs that a worker takes. Default: 180; 8 without GPUs."
    ),
    click.option("--node-memory", metavar="SIZE", help="Memory of a worker. Default: 1800Gi; 32Gi without GPUs."),
    click.option("--shm", metavar="SIZE", help="Shared memory of a worker. Default: 256Gi; 8Gi without GPUs."),
    click.option("--spot", is_flag=True, help="Workers on spot nodes; the head stays off them."),
    click.option(
        "--spot-by",
        type=click.Choice(list(SPOT_LABELS)),
        default="karpenter",
        show_default=True,
        help="Who labels spot nodes.",
    ),
    click.option(
        "--node-selector", multiple=True, metavar="KEY=VALUE", help="Label of the workers' nodes; repeatable."
    ),
    click.option(
        "--cache",
        default="empty:1Ti",
        show_default=True,
        metavar="PLACE",
        help="Where models are kept: empty:SIZE, host:/FOLDER, claim:NAME, or claim:NAME:SIZE to have the claim made.",
    ),
    click.option(
        "--mount", multiple=True, metavar="CLAIM:/FOLDER", help="Mount a volume claim in all pods; repeatable."
    ),
    click.option("--service-account", help="Service account that may reach the stores (IRSA, workload identity)."),
    click.option(
        "--secret", multiple=True, help="Name of a Kubernetes secret whose keys become environment; repeatable."
    ),
    click.option(
        "--env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Variable to set, to its value here unless one is given; no credentials; repeatable.",
    ),
    click.option(
        "--label", multiple=True, metavar="KEY=VALUE", help="Label of the object, as Kueue's queue; repeatable."
    ),
    click.option(
        "--retries", type=click.IntRange(min=0), default=2, show_default=True, help="Resumptions after a failure."
    ),
    click.option("--deadline-s", type=click.IntRange(min=1), help="Seconds after which a run is ended. Default: none."),
    click.option(
        "--ttl-s", type=click.IntRange(min=0), default=3600, show_default=True, help="Cluster's life after a run."
    ),
)
SITE_NAMES = frozenset(
    (
        "image",
        "namespace",
        "nodes",
        "gpus_per_node",
        "node_cpus",
        "node_memory",
        "shm",
        "spot",
        "spot_by",
        "node_selector",
        "cache",
        "mount",
        "service_account",
        "secret",
        "env",
        "label",
        "retries",
        "deadline_s",
        "ttl_s",
    )
)


def site_options(f: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        f = option(f)
    return f


def site_of(options: dict[str, Any]) -> Site:
    """Takes the options of `site_options` out and makes a `Site` of them.

    Raises:
        ConfigError: one does not check, or no image is named.
    """
    taken = {name: options.pop(name) for name in SITE_NAMES}
    if not taken["image"]:
        raise ConfigError(
            "No image is named",
            where="--image",
            todo="Build one (`herd cluster render --kind dockerfile-gpu` prints its recipe) and give its full name.",
        )
    spot_by = taken.pop("spot_by")
    return Site(
        spot=spot_by if taken.pop("spot") else None,
        node_selector=parse_pairs(taken.pop("node_selector"), "--node-selector"),
        cache=parse_cache(taken.pop("cache")),
        mounts=parse_pairs(taken.pop("mount"), "--mount", ":"),
        secrets=taken.pop("secret"),
        env=tuple(forwarded(taken.pop("env"), os.environ).items()),
        labels=parse_pairs(taken.pop("label"), "--label"),
        **taken,
    )


def refuse_others(known: Collection[str], what: str) -> None:
    """Raises `ConfigError` if an option was given that says nothing about what this command is asked for."""
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in known and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ConfigError(f"{parameter.opts[0]} has no meaning for {what}", where="options", todo="Leave it out.")
