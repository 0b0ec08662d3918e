"""Herd's side: a job file, `herd run` as a person would start it, and what its run left behind."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.bench.measure import Figures, SideError
from tests.bench.sides.process import ROOT, last_words

MODEL = ROOT / "jobs" / "demo" / "model"
ENGINE = {"max_num_seqs": 128, "max_model_len": 512, "dtype": "bfloat16"}
"""As the other sides have it."""


@dataclass(frozen=True)
class Run:
    """A finished run: its session's figures, and the seconds from the command's start to `_SUCCESS`."""

    output: Path
    session: dict[str, Any]
    seconds: float

    @property
    def engines(self) -> list[dict[str, Any]]:
        return list(self.session.get("engines", {}).values())

    @property
    def figures(self) -> Figures:
        session = self.session
        return {
            "rows_per_s": float(session.get("rows_per_s", 0.0)),
            "window_s": float(session.get("window_s", 0.0)),
            "session_s": float(session.get("seconds", 0.0)),
            "total_s": self.seconds,
        }

    def commits(self) -> list[dict[str, Any]]:
        """The commit records in the order of their time, which is also given as a number, `at`."""
        records = [json.loads(f.read_text()) for f in (self.output / "commits").glob("*.json")]
        for record in records:
            record["at"] = datetime.fromisoformat(record["committed_at"]).timestamp()
        return sorted(records, key=lambda r: float(r["at"]))

    def answers_sha256(self) -> str:
        """Over the responses in the order of the input."""
        parts = [pq.ParquetFile(p).read(columns=["response"]) for p in sorted((self.output / "data").glob("*.parquet"))]
        texts = [text for part in parts for text in part["response"].to_pylist()]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def vllm_job(source: Path, max_tokens: int, **sections: Any) -> dict[str, Any]:
    """A job on the demo's model with the settings that all sides share."""
    return {
        "input": {"uri": str(source)},
        "prompt": {"user": "{{ prompt }}"},
        "model": str(MODEL),
        "sampling": {"temperature": 0, "max_tokens": max_tokens},
        "engine": ENGINE,
        **sections,
    }


def echo_job(source: Path, engine: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    """A job on the echo engine over a `text` column."""
    return {
        "input": {"uri": str(source)},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo", **(engine or {})},
        **sections,
    }


def run(folder: Path, job: dict[str, Any], *settings: str) -> Run:
    """Runs a job to its end, with its output in `folder`.

    Raises:
        SideError: the command failed.
    """
    output = folder / "out"
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"name": "bench", **job, "output": {"uri": str(output)}}))
    overrides = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "jobs", "run", str(file), "--json", *overrides]
    began = time.time()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SideError(last_words(ended.stderr))
    seconds = (output / "_SUCCESS").stat().st_mtime - began
    return Run(output, json.loads(ended.stdout)["session"] or {}, seconds)


def steady_rate(commits: Sequence[dict[str, Any]]) -> float:
    """Rows/s by the times of commits: from when a tenth of the rows is committed and each engine has committed a shard, until
    a tenth of the rows is left."""
    total = sum(r["rows_in"] for r in commits)
    starting = {r["engine"] for r in commits}
    done, begin, rows, end = 0, None, 0, 0.0
    for record in commits:
        done += record["rows_in"]
        starting.discard(record["engine"])
        if begin is None:
            begin = float(record["at"]) if done >= total / 10 and not starting else None
        elif done <= total * 9 / 10:
            rows += record["rows_in"]
            end = float(record["at"])
    return rows / (end - begin) if begin is not None and end > begin else 0.0
