"""The GPUs that Herd can plan for: what of them matters to memory and speed, and clusters written as `2x8xH100`.

Pure. What the figures are is written at each; none was measured here.
"""

import re
from dataclasses import dataclass

from pipeline.config_errors import nearest
from pipeline.errors import ConfigError

GIB = 2**30
GPUS_A_NODE = 8
"""GPUs of a node where nothing else is said: an HGX or DGX board."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU. Rates are the vendor's peaks without sparsity."""

    name: str
    memory_bytes: int
    """What a program finds, which is less than what the name says."""
    bandwidth_bytes_per_s: float
    bf16_tflops: float
    fp8_tflops: float | None
    """None where it has no FP8 units."""
    accelerator_type: str
    """As Ray calls it (`ray.util.accelerators`)."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """GPUs of one kind: so many nodes of so many each."""

    gpu: Gpu
    nodes: int
    per_node: int

    @property
    def total(self) -> int:
        return self.nodes * self.per_node

    def __str__(self) -> str:
        return f"{self.nodes}x{self.per_node}x{self.gpu.name}" if self.nodes > 1 else f"{self.per_node}x{self.gpu.name}"


# Memory is the total that a program finds, rounded down: vLLM pull request #10511 shows 79.22 GiB for an H100, and a public
# log 178.35 for a B200. The others are what such cards are said to show; we have not found a log of them. Bandwidth and
# rates are NVIDIA's data sheets for the SXM boards (L40S: PCIe), without sparsity.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", int(79.2 * GIB), 3.35e12, 989, 1979, "H100"),
        Gpu("H200", int(139.8 * GIB), 4.8e12, 989, 1979, "H200"),
        Gpu("A100", int(79.1 * GIB), 2.039e12, 312, None, "A100"),  # 80 GB
        Gpu("B200", int(178.3 * GIB), 8.0e12, 2250, 4500, "B200"),
        Gpu("L40S", int(44.3 * GIB), 0.864e12, 362, 733, "L40S"),
    )
}

_ALIASES = {"A100-80G": "A100", "A100-80GB": "A100", "H100-80GB": "H100"}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of this name or Ray accelerator type, upper or lower case; None where Herd has no figures for it."""
    return GPUS.get(_ALIASES.get(name.upper(), name.upper()))


def parse_gpus(text: str) -> Gpus:
    """`8xH100`, `2x8xH100` (nodes, GPUs a node), `H100` (one). A plain number above 8 is full nodes of 8.

    Raises:
        ConfigError: it does not read so, names a GPU that Herd has no figures for, or does not fill its nodes.
    """
    match = re.fullmatch(r"(?:(\d+)\s*[x×]\s*)?(?:(\d+)\s*[x×]\s*)?([A-Za-z][\w-]*)", text.strip(), re.IGNORECASE)
    if match is None or "0" in (match[1], match[2]):
        raise ConfigError(f"`{text}` is no number of GPUs", todo="Write 8xH100, or 2x8xH100 for two nodes of eight.")
    gpu = find_gpu(match[3])
    if gpu is None:
        raise ConfigError(
            f"Herd has no figures for a GPU named `{match[3]}`.{nearest(match[3], GPUS)}",
            todo=f"It knows {', '.join(GPUS)}.",
        )
    if match[2] is not None:
        return Gpus(gpu, int(match[1]), int(match[2]))
    count = int(match[1] or 1)
    if count <= GPUS_A_NODE:
        return Gpus(gpu, 1, count)
    if count % GPUS_A_NODE:
        raise ConfigError(
            f"`{text}`: {count} GPUs do not fill nodes of {GPUS_A_NODE}", todo=f"Write NODESxGPUSx{gpu.name}."
        )
    return Gpus(gpu, count // GPUS_A_NODE, GPUS_A_NODE)
