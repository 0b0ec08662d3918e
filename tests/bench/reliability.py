"""What faults cost, on the echo engine: engine deaths and rows asked again to isolate poison rows, the time to resume a run
that is 99% done, and the driver's peak memory at 100,000 and at 1,000,000 rows.

    python -m tests.bench.reliability [poison] [resume] [memory]

Each figure is of one `herd` command, a process of its own with its own Ray. Writes a dated report to
`tests/bench/reports/`.
"""

import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
POISONED = {1: [1234], 2: [1234, 3456], 5: [7, 1234, 1235, 3456, 4999]}


def write_input(folder: Path, rows: int, rows_per_group: int, poison: list[int] | None = None) -> Path:
    """One Parquet file of `text`, in which poisoned rows say so."""
    texts = [f"row {i}" for i in range(rows)]
    for row in poison or ():
        texts[row] += " POISON"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / "rows.parquet", row_group_size=rows_per_group)
    return folder


def write_job(folder: Path, **sections: Any) -> Path:
    job = {
        "name": "bench",
        "input": {"uri": str(folder / "input")},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo", "echo": {"die_on": "POISON"}},
        "limits": {"max_quarantined_fraction": 1},
        "output": {"uri": str(folder / "out")},
        **sections,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def herd(*args: object) -> tuple[float, float]:
    """Runs a command; its seconds, and the peak resident memory of its process (the driver) in MiB."""
    started = time.monotonic()
    command = [sys.executable, "-m", "jobs", *map(str, args)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        try:
            (driver,) = psutil.Process(process.pid).children()  # below its guard
            status = Path(f"/proc/{driver.pid}/status").read_text()
        except (OSError, ValueError, psutil.Error):  # not yet, or not any more
            status = ""
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = int(found[1]) / 1024
        time.sleep(0.2)
    if process.wait():
        raise SystemExit(f"`herd {' '.join(map(str, args))}` ended with {process.returncode}")
    return time.monotonic() - started, peak


def verdict(out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs", "verify", str(out), "--json"]
    return dict(json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout))


def poison(folder: Path) -> list[str]:
    """Isolation of poison rows among 5,000 in shards of 512, on two engines."""
    lines = [
        "| poison rows | engine deaths | rows asked again | answered | quarantined | whole command |",
        "|---|---|---|---|---|---|",
    ]
    for count, rows in POISONED.items():
        here = folder / f"poison-{count}"
        write_input(here / "input", 5000, 512, rows)
        job = write_job(here, pool={"min": 2})
        seconds, _ = herd("run", job)
        session = json.loads((here / "out/run.json").read_text())["sessions"][-1]
        proof = verdict(here / "out")
        assert proof["complete"], proof
        again = sum(len(json.loads(f.read_text())["history"]) for f in (here / "out/commits").glob("*.json"))
        lines.append(
            f"| {count} | {session['engine_deaths']} | {again} | {proof['rows_ok']:,} | {proof['rows_quarantined']} "
            f"| {seconds:.0f} s |"
        )
    return lines


def resume(folder: Path) -> list[str]:
    """A run of 10,000 shards of which 100 lost their commit records."""
    here = folder / "resume"
    write_input(here / "input", 100_000, 10)
    seconds, _ = herd("run", write_job(here))
    for shard in range(0, 10_000, 100):
        (here / f"out/commits/{shard:06d}.json").unlink()
    (here / "out/_SUCCESS").unlink()
    again, _ = herd("resume", here / "out")
    assert verdict(here / "out")["complete"]
    return [
        f"A run of 10,000 shards of 10 rows took {seconds:.0f} s; resumed with 100 shards missing, {again:.0f} s for the "
        "whole command (Ray and the engine started, 100 shards answered, 10,000 records read, the files held against them)."
    ]


def memory(folder: Path) -> list[str]:
    """The driver's peak resident memory, shards of 512 rows."""
    peaks = {}
    lines = ["| rows | shards | driver's peak | whole command |", "|---|---|---|---|"]
    for rows in (100_000, 1_000_000):
        here = folder / f"memory-{rows}"
        write_input(here / "input", rows, 512)
        seconds, peaks[rows] = herd("run", write_job(here))
        proof = verdict(here / "out")
        assert proof["complete"] and proof["rows_ok"] == rows
        lines.append(f"| {rows:,} | {proof['shards']:,} | {peaks[rows]:.0f} MiB | {seconds:.0f} s |")
    growth = peaks[1_000_000] / peaks[100_000] - 1
    return [*lines, "", f"The driver's peak grew by {growth:.1%} from 100,000 to 1,000,000 rows."]


PARTS = {"poison": poison, "resume": resume, "memory": memory}


def main(wanted: list[str]) -> None:
    now = datetime.now(UTC)
    lines = [
        f"# What faults cost, {now:%Y-%m-%d}",
        "",
        f"`python -m tests.bench.reliability {' '.join(wanted)}` on {platform.machine()}, echo engine.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            lines += ["", f"## {name}", "", (PARTS[name].__doc__ or ""), "", *PARTS[name](Path(folder))]
    report = "\n".join(lines) + "\n"
    print(report)
    path = REPOSITORY / "tests/bench/reports" / f"{now:%Y-%m-%d}-{'-'.join(wanted)}.md"
    path.write_text(report)


if __name__ == "__main__":
    main(sys.argv[1:] or list(PARTS))
