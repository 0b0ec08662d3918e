"""Where the engines of a run go, as plain values: made by `cluster.placement`, used by the run, its actors and engines.

Two kinds of engines: one that fits on a node is an actor with all of its GPUs, and vLLM starts its workers there (`mp`).
One that does not is an actor without GPUs, whose process takes a `Gang` of them; see `pipeline.gang`. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The label that Ray gives a node by what its GPUs call themselves, and that an autoscaler's node types may carry."""


@dataclass(frozen=True)
class Gang:
    """GPUs for one engine over several nodes: `groups` pipeline stages of `size` GPUs. A group, whose tensor parallel
    workers exchange activations in every layer, never spans nodes; between stages little is said."""

    groups: int
    size: int
    accelerator: str
    by_label: bool = False
    """Name the accelerator by its label instead of Ray's resource `accelerator_type:...`."""

    @property
    def bundle(self) -> dict[str, float]:
        """What one group asks of a node."""
        kind = {} if self.by_label else {f"accelerator_type:{self.accelerator}": 0.001}
        return {"GPU": float(self.size), **kind}

    @property
    def selector(self) -> dict[str, str]:
        """The labels that a group's node must have."""
        return {ACCELERATOR_LABEL: self.accelerator} if self.by_label else {}


@dataclass(frozen=True)
class Placement:
    """What Ray is asked for: `actor` for an engine actor and `reads` for a read task, both as Ray's own options."""

    actor: Mapping[str, Any]
    reads: Mapping[str, Any] = field(default_factory=dict)
    gang: Gang | None = None
    """What the engine's process takes beyond the actor."""
    hosts: int = 1
    """Nodes that engine actors may go to."""
    per_host: int | None = None
    """Engine actors that one of them has room for; None: any number."""
    fork_server: str | None = None
    """Where engines are forked, if that is open already; see `pipeline.host.forkserver`."""

    def engines_per_node(self, engines: int) -> int:
        """How many of `engines` may come to share a node, for what they share there: cores and threads."""
        share = -(-engines // self.hosts)
        return share if self.per_host is None else max(1, min(share, self.per_host))
