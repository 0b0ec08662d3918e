"""Where the cores go: the CPU time of each kind of process of a run, from its first commit to its last, in percent of one
core. Processes of Ray's that do the same are one line; what had less than 1% is summed up."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.bench import inputs
from tests.bench.measure import Bench
from tests.bench.sides import herd

SAMPLE_S = 0.5
SHOWN = 1.0
"""Percent of a core below which a kind of process has no line of its own."""


def prepare(folder: Path, quick: bool) -> Bench:
    return Bench("cores", " ".join((__doc__ or "").split()), {}, [], appendix=_appendix)


def _appendix(folder: Path, stem: Path) -> list[str]:
    lines = ["| run | rows/s | all | by process |", "|---|---|---|---|"]
    for name, job in _jobs(folder):
        here = folder / name
        here.mkdir(parents=True)
        rate, shares = _looked_at(here, job)
        large = {kind: share for kind, share in shares.most_common() if share >= SHOWN}
        rest = shares.total() - sum(large.values())
        parts = [f"{kind} {share:.0f}%" for kind, share in [*large.items(), ("others", rest)]]
        lines.append(f"| {name} | {rate:,.0f} | {shares.total():.0f}% | {', '.join(parts)} |")
    return lines


def _jobs(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    texts = inputs.write(inputs.texts(8000), folder / "texts")
    text = herd.vllm_job(texts, 16, sampling={"temperature": 0, "max_tokens": 16, "ignore_eos": True})
    yield "text", text
    yield "text, an engine a core", {**text, "pool": {"min": psutil.cpu_count()}}
    digits = inputs.write(inputs.digits(), folder / "digits", rows_per_group=256)
    yield "images", herd.vllm_job(digits, 3, input={"uri": str(digits), "images": ["image"]})
    words = inputs.write(inputs.words(200_000), folder / "words", files=8, rows_per_group=8192)
    yield "echo", herd.echo_job(words)


def _looked_at(folder: Path, job: dict[str, Any]) -> tuple[float, "Counter[str]"]:
    """Rows/s of a run, and percent of a core by kind of process between its first and its last commit."""
    samples: list[tuple[float, dict[int, tuple[str, float]]]] = []
    ended = threading.Event()

    def watch() -> None:
        command = psutil.Process()
        while not ended.wait(SAMPLE_S):
            samples.append((time.time(), dict(_spent(command))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run = herd.run(folder, job)
    finally:
        ended.set()
        watcher.join()
    commits = [float(record["at"]) for record in run.commits()]
    inside = [sample for sample in samples if commits[0] <= sample[0] <= commits[-1]]
    (began, first), (finished, last) = inside[0], inside[-1]
    shares: Counter[str] = Counter()
    for pid, (kind, spent) in last.items():
        shares[kind] += 100 * (spent - first.get(pid, (kind, 0.0))[1]) / (finished - began)
    return run.figures["rows_per_s"], shares


def _spent(command: psutil.Process) -> Iterator[tuple[int, tuple[str, float]]]:
    """Kind and CPU seconds so far of each process below this one."""
    for process in command.children(recursive=True):
        try:
            times = process.cpu_times()
            yield process.pid, (_kind(process), times.user + times.system)
        except psutil.Error:
            continue


def _kind(process: psutil.Process) -> str:
    name, words = process.name(), process.cmdline()
    if words and words[0].startswith("ray::"):
        return words[0].split("(")[0].strip()
    if not name.startswith("python"):
        return name
    return "herd run" if "jobs" in words else "Ray's daemons"
