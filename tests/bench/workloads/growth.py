"""How cost grows: rows, shards, the size of a row, images and engines, each at three sizes on the echo engine; the driver's CPU
time a shard against bare Ray Data with as many blocks; and the plan of a billion rows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import yaml

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures, SideError
from tests.bench.plots import exponent, plot_growth
from tests.bench.sides import herd
from tests.bench.sides.process import ROOT, last_words, told

SAMPLE_S = 0.5
FEW_SHARDS = 100
TARGET = 1.5
PLANNED_ROWS = (10_000_000, 100_000_000, 1_000_000_000)
DRIVER_GIB = 16
STEPS = {"cut": "cutting", "order": "ordering", "bundle": "bundling", "tasks": "making read tasks"}


@dataclass(frozen=True)
class Grown:
    """What grows, at which sizes, and the rows and the job at a size."""

    sizes: tuple[int, ...]
    table: Callable[[int], pa.Table]
    rows_per_group: int = 512
    settings: Callable[[int], dict[str, Any]] = lambda size: {}


GROWN: dict[str, Grown] = {
    "rows": Grown((50_000, 150_000, 450_000), inputs.words),
    "shards": Grown((300, 1000, 3000), lambda size: inputs.words(size * 10), 10),
    "bytes a row": Grown((1000, 10_000, 100_000), lambda size: inputs.sized(4000, size)),
    "images": Grown((450, 900, 1797), inputs.digits, 128, lambda size: {"images": True}),
    "engines": Grown((1, 4, 16), lambda size: inputs.words(20_000), 128, lambda size: {"pool": {"min": size}}),
}


def prepare(folder: Path, quick: bool) -> Bench:
    shards = 1000 if quick else 10_000
    claims = [
        Claim(
            "growth/driver",
            f"driver's CPU time a shard, {shards:,} shards of a row group each",
            "bare Ray Data, as many blocks",
            "ms",
            ("herd", "ms_a_shard"),
            ("ray", "ms_a_shard"),
            TARGET,
            at_most=True,
        )
    ]
    sides = {"herd": partial(_herd_driver, folder, shards), "ray": partial(_ray_driver, folder, shards)}
    return Bench("growth", " ".join((__doc__ or "").split()), sides, claims, partial(_appendix, quick))


def _herd_driver(inputs_folder: Path, shards: int, folder: Path) -> Figures:
    """The CPU time of many shards less that of few, so that Ray's start and imports do not count."""
    cpu = {}
    for count in (FEW_SHARDS, shards):
        source = inputs.write(inputs.words(count), inputs_folder / f"shards-{count}", rows_per_group=1)
        here = folder / str(count)
        here.mkdir()
        cpu[count] = _herd_run(here, herd.echo_job(source))["cpu_s"]
    return {"ms_a_shard": 1000 * (cpu[shards] - cpu[FEW_SHARDS]) / (shards - FEW_SHARDS), "cpu_s": cpu[shards]}


def _ray_driver(inputs_folder: Path, shards: int, folder: Path) -> Figures:
    cpu = {}
    for count in (FEW_SHARDS, shards):
        source = inputs.write(inputs.words(count), inputs_folder / f"shards-{count}", rows_per_group=1)
        found = told("tests.bench.sides.ray_blocks", source / "part-00000.parquet", folder / str(count))
        cpu[count] = found["cpu_s"]
    return {"ms_a_shard": 1000 * (cpu[shards] - cpu[FEW_SHARDS]) / (shards - FEW_SHARDS), "cpu_s": cpu[shards]}


def _herd_run(folder: Path, job: dict[str, Any]) -> Figures:
    """A run whose driver tells what it cost, and the peak of the private memory of all its processes together."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"name": "bench", **job, "output": {"uri": str(folder / "out")}}))
    command = [sys.executable, "-m", "tests.bench.sides.driver", "run", str(file), "--json"]
    with (folder / "said").open("w+") as said, (folder / "erred").open("w+") as erred:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=erred)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, _private_mib(process.pid))
            time.sleep(SAMPLE_S)
        if process.returncode:
            raise SideError(last_words((folder / "erred").read_text()))
        *document, last = (folder / "said").read_text().strip().splitlines()
    session = json.loads("\n".join(document))["session"]
    return {**json.loads(last), "all_mib": peak, "session_s": session["seconds"]}


def _private_mib(pid: int) -> float:
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    except psutil.Error:
        pass  # a process that has just ended
    return total / 2**20


def _appendix(quick: bool, folder: Path, stem: Path) -> list[str]:
    lines: list[str] = []
    for name, grown in GROWN.items():
        lines += _grown(name, grown, quick, folder / name.replace(" ", "-"), stem)
    return [*lines, *_planned(quick, stem)]


def _grown(name: str, grown: Grown, quick: bool, folder: Path, stem: Path) -> list[str]:
    found: dict[int, Figures] = {}
    for size in grown.sizes[: 2 if quick else 3]:
        here = folder / str(size)
        source = inputs.write(grown.table(size), here / "input", rows_per_group=grown.rows_per_group)
        found[size] = _herd_run(here, _job(source, grown.settings(size)))
        print(f"growth: {name} {size:,}: {found[size]}", flush=True)
    kinds = {"seconds": {"whole command": "seconds", "session": "session_s", "driver's CPU": "cpu_s"}}
    kinds["MiB"] = {"driver": "peak_mib", "all processes": "all_mib"}
    lines = [f"### {name}", "", *_growth_table(name, found, kinds), ""]
    if quick:
        return lines
    curves = {u: {n: [(s, f[k]) for s, f in found.items()] for n, k in named.items()} for u, named in kinds.items()}
    plot = plot_growth(name, curves, stem.with_name(f"{stem.name}-growth-{name.replace(' ', '-')}.svg"))
    return [*lines, f"![Seconds and memory over {name}]({plot.name})", ""]


def _job(source: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    if "images" in settings:
        return herd.echo_job(source, input={"uri": str(source), "images": ["image"]}, prompt={"user": "{{ prompt }}"})
    return herd.echo_job(source, **settings)


def _growth_table(name: str, found: Mapping[int, Figures], kinds: Mapping[str, Mapping[str, str]]) -> list[str]:
    named = [(f"{label}, {unit}", key) for unit, labels in kinds.items() for label, key in labels.items()]
    lines = [f"| {name} | {' | '.join(label for label, _ in named)} |", "|" + "---|" * (len(named) + 1)]
    for size, figures in found.items():
        lines.append(f"| {size:,} | {' | '.join(f'{figures[key]:,.1f}' for _, key in named)} |")
    powers = [exponent([(size, figures[key]) for size, figures in found.items()]) for _, key in named]
    return [*lines, f"| power | {' | '.join(f'{p:.2f}' for p in powers)} |"]


def _planned(quick: bool, stem: Path) -> list[str]:
    found = {rows: told("tests.bench.sides.plan_rows", rows) for rows in PLANNED_ROWS[: 2 if quick else 3]}
    lines = [
        "### The plan",
        "",
        "From simulated footers of row groups of 100,000 rows, shards of 512, in a process of its own.",
        "",
        f"| rows | shards | bundles | plan, MiB | {' | '.join(f'{label}, s' for label in STEPS.values())} | peak, MiB |",
        "|" + "---|" * (5 + len(STEPS)),
    ]
    for rows, f in found.items():
        steps = " | ".join(f"{f[f'{step}_s']:.2f}" for step in STEPS)
        cells = f"{rows:,} | {f['shards']:,} | {f['bundles']:,} | {f['plan_mib']:,.0f} | {steps}"
        lines.append(f"| {cells} | {f['tasks_mib']:,.0f} |")
    most = max(found)
    f = found[most]
    slowest = max(STEPS, key=lambda step: float(f[f"{step}_s"]))
    before = f["import_mib"]
    hungriest = max(STEPS, key=lambda step: f[f"{step}_mib"] - _before(f, step, before))
    seconds = sum(f[f"{step}_s"] for step in STEPS)
    shard_bytes = (f["tasks_mib"] - before) * 2**20 / f["shards"]
    held = DRIVER_GIB * 2**30 / shard_bytes / f["shards"] * most
    lines += [
        "",
        f"At {most:,} rows it takes {seconds:.1f} s in all, of which {STEPS[slowest]} takes most, and {shard_bytes:.0f} bytes "
        f"a shard, of which {STEPS[hungriest]} takes most. So {DRIVER_GIB} GiB of a driver's memory hold a plan of "
        f"{held / 1e9:.0f} billion rows, in {seconds * held / most:.0f} s if time goes on growing alike; "
        "listing and reading the footers comes on top, and is not measured here.",
        "",
    ]
    if quick:
        return lines
    curves = {
        "seconds": {label: [(rows, v[f"{step}_s"]) for rows, v in found.items()] for step, label in STEPS.items()},
        "MiB": {"peak": [(rows, v["tasks_mib"]) for rows, v in found.items()]},
    }
    plot = plot_growth("rows planned", curves, stem.with_name(f"{stem.name}-growth-plan.svg"))
    return [*lines, f"![Seconds and memory of the plan]({plot.name})", ""]


def _before(figures: Mapping[str, float], step: str, start: float) -> float:
    """The peak when a step began."""
    steps = list(STEPS)
    place = steps.index(step)
    return figures[f"{steps[place - 1]}_mib"] if place else start
