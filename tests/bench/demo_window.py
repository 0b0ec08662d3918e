"""The engine's window of the demo against raw vLLM over the same rows, in turn, several times.

    python -m tests.bench.demo_window [--rounds 3]

Herd's window runs from the first request's admission to the last answer, first requests included; the yardstick's is
timed after a warm-up. Writes a dated report to tests/bench/reports/ and prints it.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.facts import versions

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "jobs" / "demo"
QUESTION = "Which digit is this?"
CHOICE = ",".join(str(d) for d in range(10))


def good_rows(target: Path) -> int:
    files = sorted((DEMO / "data").glob("*.parquet"))
    table = pa.concat_tables([pq.ParquetFile(f).read() for f in files])
    table = table.filter(pc.not_equal(table["split"], "broken"))
    pq.write_table(table, target)
    return int(table.num_rows)


def run_json(*command: str) -> Any:
    ended = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout


def herd_once(output: Path) -> tuple[float, str, float]:
    """Rows/s in the engine's window, the digest of the answers in plan order, and the whole command's seconds."""
    told = json.loads(run_json("jobs", "run", "jobs/demo/digits.yaml", "--json", "--set", f"output.uri={output}"))
    parts = [pq.ParquetFile(p).read(columns=["response"]) for p in sorted((output / "data").glob("*.parquet"))]
    texts = [t for part in parts for t in part["response"].to_pylist()]
    session = told["session"]
    return session["rows_per_s"], hashlib.sha256("\0".join(texts).encode()).hexdigest(), session["seconds"]


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rounds", type=int, default=3)
    rounds = arguments.parse_args().rounds
    ours, raws, seconds = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "good.parquet")
        rows = good_rows(file)
        for turn in range(rounds):
            speed, digest, whole = herd_once(Path(scratch, f"out-{turn}"))
            raw = json.loads(
                run_json(
                    "tests.bench.raw_vllm", str(DEMO / "model"), str(file), "--prompt", QUESTION, "--image-column",
                    "image", "--choice", CHOICE, "--max-tokens", "4", "--repeat", "1",
                ).splitlines()[-1]
            )  # fmt: skip
            assert raw["answers_sha256"] == digest, "the two sides gave different answers"
            ours.append(speed)
            raws.append(raw["rows_per_s"])
            seconds.append(whole)
            print(f"round {turn + 1}: herd {speed} rows/s, raw {raw['rows_per_s']} rows/s", flush=True)
    ratios = [a / b for a, b in zip(ours, raws, strict=True)]
    today = datetime.date.today().isoformat()
    lines = [
        f"# The demo's engine window against raw vLLM, {today}",
        "",
        f"`python -m tests.bench.demo_window --rounds {rounds}`; {rows} images, `choice` answers; "
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU.",
        ", ".join(f"{k} {v}" for k, v in versions().items()) + ".",
        "Both sides gave the same answers, row for row, in every round.",
        "",
        "| round | Herd, rows/s in its engine's window | raw `LLM.chat`, rows/s | ratio |",
        "|---|---|---|---|",
        *(f"| {i + 1} | {a:.1f} | {b:.1f} | {a / b:.2f} |" for i, (a, b) in enumerate(zip(ours, raws, strict=True))),
        f"| median | {statistics.median(ours):.1f} | {statistics.median(raws):.1f} | {statistics.median(ratios):.2f} |",
        "",
        f"A whole run (Ray connected, engine start included) took {statistics.median(seconds):.1f} s (median).",
    ]
    report = ROOT / "tests" / "bench" / "reports" / f"{today}-demo-window.md"
    report.parent.mkdir(exist_ok=True)
    report.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
