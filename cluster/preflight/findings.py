"""What probes mean for a run: a list of findings, each with what to do. Pure.

Rules look at one node at a time; versions alone are compared between nodes. Equal findings of many nodes fold into one
line.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.fit import GPU_MEMORY_UTILIZATION
from cluster.preflight.gpus import is_driver_enough, min_driver
from cluster.preflight.probe import SHARED_MEMORY, Probe

GIB = 2**30
MIN_SHM_BYTES = 2 * GIB
MIN_SHM_BYTES_PARALLEL = GIB
"""NCCL's own advice for containers is `--shm-size=1g`; Docker gives 64 MiB:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html"""
MIN_DISK_BYTES = 20 * GIB
MAX_SKEW_S = 2.0
ENGINE_PACKAGES = ("vllm", "torch", "transformers")
MUST_BE_EQUAL = ("python", "ray", "herd-batch", "vllm")
"""Ray refuses other versions of the first two, pickles of ours need the third, and lineage names one vLLM."""
SWITCHED_ON = ("1", "true", "yes", "on")

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, what was found, and what to do about it. `node` is None for what is the job's."""

    verdict: Verdict
    what: str
    found: str
    todo: str = ""
    node: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = f" on {self.node}" if self.node else ""
        return f"{self.what}{where}: {self.found.rstrip('.')}. {self.todo}".strip()


@dataclass(frozen=True, slots=True)
class Need:
    """What a job asks of a node with an engine; the default is asked where there is no job."""

    vllm: bool = True
    gpus: int = 0
    """GPUs of one engine."""
    memory_share: float = GPU_MEMORY_UTILIZATION
    """vLLM's `gpu_memory_utilization`."""
    has_job: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a node: its probe, or why there is none. Times are the driver's, seconds since 1970."""

    node: str
    probe: Probe | None
    why: str = ""
    asked_s: float = 0.0
    answered_s: float = float("inf")
    holds_engines: bool = True
    """Whether an engine of the job may be placed there."""
    num_gpus: int | None = None
    """GPUs that Ray counts there; None where Ray was not asked."""


def findings(
    answers: Sequence[Answer],
    need: Need,
    driver: Mapping[str, str] | None = None,
    *,
    silence: Verdict = "fail",
) -> list[Finding]:
    """The findings of all nodes, node by node. `driver` holds the versions of the process that asks; `silence` is the
    verdict on a node that does not answer."""
    common = _common_versions(answers, driver)
    out = []
    for a in answers:
        if a.probe is None:
            todo = "See that the node is up and has the same herd-batch; its raylet's log says more."
            out.append(Finding(silence, "node", f"does not answer: {a.why}", todo, a.node))
        else:
            out += list(_of_node(a, a.probe, need, common))
    return out


def _of_node(a: Answer, probe: Probe, need: Need, common: Mapping[str, str]) -> Iterator[Finding]:
    for verdict, what, found, todo in (
        *_versions(a, probe, common),
        *_vllm(a, probe, need),
        *_shared_memory(probe, need),
        *_gpus(a, probe, need),
        *_driver(probe),
        *_links(probe, need),
        *_environment(a, probe, need),
        *_disk(a, probe, need),
        *_clock(a, probe),
        *((("fail" if t.fault else "pass"), t.what, t.fault or t.found, t.todo) for t in probe.trials),
    ):
        yield Finding(verdict, what, found, todo, a.node)


Row = tuple[Verdict, str, str, str]


def _common_versions(answers: Iterable[Answer], driver: Mapping[str, str] | None) -> dict[str, str]:
    """The version that each package should have: the driver's; of what only engines use, the commonest among their nodes."""
    common = {k: v for k, v in (driver or {}).items() if k not in ENGINE_PACKAGES}
    for package in ENGINE_PACKAGES:
        found = [a.probe.versions.get(package) for a in answers if a.probe is not None and a.holds_engines]
        if known := Counter(v for v in found if v is not None).most_common(1):
            common[package] = known[0][0]
    return common


def _versions(a: Answer, probe: Probe, common: Mapping[str, str]) -> Iterator[Row]:
    have = probe.versions
    yield "pass", "versions", ", ".join(f"{k} {v}" for k, v in have.items()), ""
    for package, wanted in common.items():
        found = have.get(package)
        if package in ENGINE_PACKAGES and (found is None or not a.holds_engines):
            continue  # an engine's node without vLLM is told below
        if found is not None and found.partition("+")[0] == wanted.partition("+")[0]:
            continue  # builds for other hardware (`+cpu`, `+cu130`) are of the same version
        is_fatal = package in MUST_BE_EQUAL
        if package == "python" and found is not None:
            is_fatal = found.split(".")[:2] != wanted.split(".")[:2]
        said = f"{found or 'not installed'}, elsewhere {wanted}"
        yield "fail" if is_fatal else "warn", package, said, "Install the same version on every node."


def _vllm(a: Answer, probe: Probe, need: Need) -> Iterator[Row]:
    if not (need.vllm and a.holds_engines):
        return
    if "vllm" not in probe.versions:
        is_needed = need.has_job or probe.gpus
        todo = "Install the `cpu` or the `gpu` extra of herd-batch."
        yield "fail" if is_needed else "warn", "vllm", "not installed", todo
    elif need.has_job and not need.gpus and not probe.is_vllm_for_cpu:
        # it would take whichever GPU it sees, with no other engine kept off it
        todo = "Name the GPUs, such as `pool.accelerator: H100`, or install the `cpu` extra."
        yield "fail", "vllm", "the build for GPUs, and the job puts its engines on the CPU", todo
    elif need.gpus and probe.gpus and probe.is_vllm_for_cpu:
        yield "fail", "vllm", "the build for CPUs, and the job puts its engines on GPUs", "Install the `gpu` extra."


def _shared_memory(probe: Probe, need: Need) -> Iterator[Row]:
    if probe.shm_bytes is None:
        return
    found = f"{probe.shm_bytes / GIB:,.1f} GiB" if probe.shm_bytes >= GIB else f"{probe.shm_bytes / 2**20:,.0f} MiB"
    todo = "Mount a larger one: Ray's object store and tensor parallel engines share it."
    if need.gpus > 1 and probe.shm_bytes < MIN_SHM_BYTES_PARALLEL:
        yield "fail", SHARED_MEMORY, found, todo
    elif probe.shm_bytes < MIN_SHM_BYTES:
        yield "warn", SHARED_MEMORY, found, todo
    else:
        yield "pass", SHARED_MEMORY, found, ""


def _gpus(a: Answer, probe: Probe, need: Need) -> Iterator[Row]:
    if probe.gpu_fault is not None:
        yield "fail", "gpus", probe.gpu_fault, "Mend the driver, or drain the node."
        return
    if not probe.gpus:
        return
    kinds = Counter((g.name, round(g.total_bytes / GIB)) for g in probe.gpus)
    listed = ", ".join(f"{n} x {name} {gib} GiB" for (name, gib), n in kinds.items())
    yield "pass", "gpus", listed, ""
    if len(kinds) > 1:
        yield "warn", "gpus", f"GPUs of several kinds: {listed}", "Engines take any of them; keep a node to one kind."
    if a.num_gpus is not None and a.num_gpus > len(probe.gpus):
        told = f"Ray counts {a.num_gpus} GPUs and the driver {len(probe.gpus)}"
        yield "fail", "gpus", told, "Restart the node's Ray without --num-gpus, or mend the GPU that fell out."
    short = [n for n, g in enumerate(probe.gpus) if g.total_bytes and g.free_bytes < need.memory_share * g.total_bytes]
    if short:
        least = min(probe.gpus[n].free_bytes for n in short)
        told = (
            f"GPU {', '.join(map(str, short))} {'is' if len(short) == 1 else 'are'} in use: {least / GIB:.0f} GiB free"
        )
        todo = f"An engine wants {need.memory_share:.0%} of each; end what holds it, or lower gpu_memory_utilization."
        yield "warn", "gpu memory", told, todo


def _driver(probe: Probe) -> Iterator[Row]:
    if not probe.gpus or probe.torch_cuda is None:
        if probe.gpus and "torch" in probe.versions:
            yield "fail", "driver", f"torch {probe.versions['torch']} is built without CUDA", "Install the `gpu` extra."
        return
    driver, cuda = probe.gpus[0].driver, probe.torch_cuda
    enough = is_driver_enough(driver, cuda)
    if enough is False:
        told = f"driver {driver} is too old for torch built with CUDA {cuda}"
        todo = f"Install driver {min_driver(cuda)} or newer, or a build for an older CUDA."
        yield "fail", "driver", told, todo
    else:
        yield "pass", "driver", f"{driver} runs torch built with CUDA {cuda}" if enough else driver, ""


def _links(probe: Probe, need: Need) -> Iterator[Row]:
    if probe.is_nvlinked is None:
        return
    if probe.is_nvlinked:
        yield "pass", "nvlink", "all GPUs are joined by NVLink", ""
    elif need.gpus > 1:
        todo = "Tensor parallel engines will be slow; prefer pipeline_parallel_size, or another node."
        yield "warn", "nvlink", "not all GPUs are joined by NVLink", todo


def _environment(a: Answer, probe: Probe, need: Need) -> Iterator[Row]:
    env = probe.environment
    on = {name for name, value in env.items() if value.lower() in SWITCHED_ON}
    if need.has_job and need.gpus < 2:
        return  # no engine of it talks to another GPU
    for name, why in (
        ("NCCL_P2P_DISABLE", "GPUs then talk through the host's memory"),
        ("NCCL_SHM_DISABLE", "GPUs then talk through the network stack"),
        ("NCCL_IB_DISABLE", "nodes then talk over sockets"),
        ("CUDA_LAUNCH_BLOCKING", "each kernel then waits for the one before"),
    ):
        if name in on:
            yield "warn", name, f"{env[name]}: {why}", "Unset it, unless it is there on purpose."
    if env.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        yield "warn", "NCCL_DEBUG", f"{env['NCCL_DEBUG']} fills the logs", "Set it to WARN when all works."
    wanted = env.get("NCCL_SOCKET_IFNAME")
    if wanted and probe.interfaces and not chosen_interfaces(wanted, probe.interfaces):
        told = f"{wanted} names none of this node's interfaces ({', '.join(probe.interfaces)})"
        is_used = need.has_job and a.holds_engines
        yield "fail" if is_used else "warn", "NCCL_SOCKET_IFNAME", told, "Name one that the node has, or unset it."


def chosen_interfaces(wanted: str, interfaces: Sequence[str]) -> list[str]:
    """The network interfaces that `NCCL_SOCKET_IFNAME` leaves: prefixes with commas between; `=` before them for exact
    names, `^` for all but these. https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html"""
    is_not, is_exact = wanted.startswith("^"), wanted.lstrip("^").startswith("=")
    names = [name for name in wanted.lstrip("^=").split(",") if name]
    named = [i for i in interfaces if any(i == n if is_exact else i.startswith(n) for n in names)]
    return [i for i in interfaces if i not in named] if is_not else named


def _disk(a: Answer, probe: Probe, need: Need) -> Iterator[Row]:
    if probe.disk is None or not a.holds_engines:
        return
    free, missing = probe.disk.free_bytes, probe.disk.missing_bytes
    found = f"{free / GIB:,.0f} GiB free at {probe.disk.folder}"
    if missing > free:
        told = f"{found}, and the model takes {missing / GIB:,.1f} GiB more"
        yield (
            "fail",
            "disk for model copies",
            told,
            "Make room, or set HERD_CACHE (for a hub's model HF_HOME) elsewhere.",
        )
    elif not need.has_job and free < MIN_DISK_BYTES:
        yield "warn", "disk for model copies", found, "Set HERD_CACHE to a larger disk."
    else:
        yield "pass", "disk for model copies", found, ""


def _clock(a: Answer, probe: Probe) -> Iterator[Row]:
    skew = skew_s(a.asked_s, probe.clock_s, a.answered_s)
    if abs(skew) > MAX_SKEW_S:
        told = f"{abs(skew):,.1f} s {'ahead of' if skew > 0 else 'behind'} the driver's"
        yield "warn", "clock", told, "Have it set by NTP: leases and S3 signatures go by it."


def skew_s(asked: float, clock: float, answered: float) -> float:
    """Seconds by which a node's clock is certainly off, given that it was read between the two times: 0 where nothing is
    certain, negative where it is behind."""
    return min(0.0, clock - asked) or max(0.0, clock - answered)


@dataclass(frozen=True, slots=True)
class Folded:
    """Like findings of several nodes, told once."""

    finding: Finding
    nodes: tuple[str, ...]
    found: str
    """What was found; where that differs, the first few."""


def folded(found: Iterable[Finding], shown: int = 2) -> list[Folded]:
    """Findings that differ only in their node and in what was found become one, in the order of the first of each."""
    groups: dict[tuple[str, str, str], list[Finding]] = {}
    for f in found:
        groups.setdefault((f.verdict, f.what, f.todo), []).append(f)
    out = []
    for group in groups.values():
        said = list(dict.fromkeys(f.found for f in group))
        more = f" | and {len(said) - shown} more" if len(said) > shown else ""
        nodes = tuple(dict.fromkeys(f.node for f in group if f.node))
        out.append(Folded(group[0], nodes, " | ".join(said[:shown]) + more))
    return out
