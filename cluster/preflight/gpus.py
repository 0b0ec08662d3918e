"""A node's NVIDIA GPUs, by `nvidia-smi`, which comes with the driver; and which CUDA a driver runs.

NVML says the same and comes in the same package, so its bindings would add a dependency and nothing else. The parsers are
tested against published outputs; docs/gpu.md says what of them ran on a GPU.
"""

import re
import subprocess
from dataclasses import dataclass

QUERY = ("name", "memory.total", "memory.free", "driver_version")
MIN_DRIVER = {13: (580,), 12: (525, 60, 13), 11: (450, 80, 2)}
"""The oldest Linux driver that runs programs built with any minor version of a major version of CUDA:
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html"""
TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    total_bytes: int
    free_bytes: int
    driver: str


class GpuError(Exception):
    """There is a driver, and it does not answer."""


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine; none where there is no driver.

    Raises:
        GpuError: `nvidia-smi` is there and fails.
    """
    said = _ask(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    return () if said is None else parse_gpus(said)


def find_nvlink() -> bool | None:
    """Whether all GPUs of this machine reach each other over NVLink; None with fewer than two."""
    said = _ask("topo", "-m")
    return None if said is None else parse_topology(said)


def _ask(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return None
    except subprocess.TimeoutExpired:
        raise GpuError(f"nvidia-smi did not answer for {TIMEOUT_S:.0f} s") from None
    if "No devices were found" in done.stdout:
        return None
    if done.returncode:
        raise GpuError(" ".join((done.stdout + done.stderr).split())[:300])
    return done.stdout


def parse_gpus(said: str) -> tuple[Gpu, ...]:
    """From lines of `QUERY`'s fields with commas between; memory in MiB, as nvidia-smi gives it without units."""
    out = []
    for line in said.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == len(QUERY):
            name, total, free, driver = fields
            out.append(Gpu(name, _mib(total), _mib(free), driver))
    return tuple(out)


def _mib(field: str) -> int:
    return int(field) * 2**20 if field.isdigit() else 0  # `[N/A]` where a GPU shares the machine's memory


def parse_topology(said: str) -> bool | None:
    """Whether each pair of GPUs in the matrix of `nvidia-smi topo -m` is joined by NVLink (`NV` and a number); None where
    there is no pair."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said)
    rows = [line.split() for line in plain.splitlines() if re.match(r"GPU\d+\s", line)]
    # the header line begins with blanks, so that rows alone begin with a GPU; their first cells are the GPUs
    cells = [cell for row in rows for cell in row[1 : 1 + len(rows)] if cell != "X"]
    return all(re.fullmatch(r"NV\d+", cell) for cell in cells) if cells else None


def is_driver_enough(driver: str, cuda: str) -> bool | None:
    """Whether a driver (`535.104.05`) runs what was built with this CUDA (`12.8`); None for a CUDA of which nothing is known
    here."""
    needed = MIN_DRIVER.get(int(cuda.split(".")[0])) if cuda.split(".")[0].isdigit() else None
    if needed is None:
        return None
    have = tuple(int(part) for part in re.findall(r"\d+", driver))
    return have >= needed


def min_driver(cuda: str) -> str:
    """The oldest driver for this CUDA, in words."""
    return ".".join(f"{part:02d}" if n else str(part) for n, part in enumerate(MIN_DRIVER[int(cuda.split(".")[0])]))
