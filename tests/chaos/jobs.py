"""Small jobs on the echo engine whose outcome is known row by row, and the judgement of what became of them."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.config import StorageConfig
from pipeline.storage import Store
from tests.chaos.cage import Cage, Command, wait_until
from tests.conftest import S3, Herd, Outcome

WORDS = {"engine/echo_fail_on": "spoilt", "engine/engine_death": "poison", "engine/engine_stall": "sleepy"}
"""What a prompt holds for its row to be quarantined so."""


@dataclass
class Job:
    """A job file, and what must come out."""

    path: Path
    out: str
    storage: StorageConfig
    shards: int
    texts: dict[str, str]
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        return ["--endpoint-url", self.storage.endpoint_url] if self.storage.endpoint_url else []

    @property
    def store(self) -> Store:
        return Store(self.out, self.storage, retry_s=60)

    def commits(self) -> int:
        return len(self.store.list_folder(f"{self.out}/commits"))


def make_job(
    folder: Path,
    seed: int,
    *,
    shards: int = 12,
    rows: int = 6,
    poison: int = 0,
    sleepy: int = 0,
    latency_s: float = 0.05,
    max_num_seqs: int = 4,
    pool: dict[str, Any] | None = None,
    limits: dict[str, Any] | None = None,
    s3: S3 | None = None,
) -> Job:
    """`shards` row groups of `rows` rows. Of each shard one row is quarantined by the engine; `poison` rows kill it and
    `sleepy` rows hang it, each in a shard of its own. The seed says which."""
    rng = Random(seed)
    root = f"s3://bucket/chaos-{seed}-{folder.name}" if s3 else str(folder)
    storage = StorageConfig(endpoint_url=s3.endpoint_url if s3 else None)
    kinds: dict[int, str] = {}
    for shard in range(shards):
        kinds[shard * rows + rng.randrange(rows)] = "engine/echo_fail_on"
    worst = rng.sample(range(shards), poison + sleepy)
    for n, shard in enumerate(worst):
        free = [i for i in range(shard * rows, shard * rows + rows) if i not in kinds]
        kinds[rng.choice(free)] = "engine/engine_death" if n < poison else "engine/engine_stall"
    ids = [f"row-{i:05d}" for i in range(shards * rows)]
    texts = {row: f"{WORDS.get(kinds.get(i, ''), 'plain')} question number {i}" for i, row in enumerate(ids)}
    table = pa.table({"id": ids, "text": list(texts.values())})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows)
    Store(root, storage).put(f"{root}/input/part.parquet", sink.getvalue())
    reach = {"storage": storage.model_dump(exclude_defaults=True)} if s3 else {}
    echo = {"latency_s": latency_s, "fail_on": "spoilt", "die_on": "poison", "hang_on": "sleepy"}
    job = {
        "name": f"chaos-{seed}",
        "input": {"uri": f"{root}/input", **reach},
        "prompt": {"user": "{{ text }}"},
        "engine": {"kind": "echo", "max_num_seqs": max_num_seqs, "echo": echo},
        "pool": {"min": 2, "shards_in_flight": 1, **(pool or {})},
        "shard": {"max_rows": rows},
        "limits": {"max_quarantined_fraction": 1.0, "max_shard_attempts": 100, "lease_s": 30, **(limits or {})},
        "output": {"uri": f"{root}/out", **reach},
    }
    path = folder / f"job-{seed}.yaml"
    path.write_text(yaml.safe_dump(job))
    failures = {ids[i]: kind for i, kind in kinds.items()}
    return Job(path, f"{root}/out", storage, shards, texts, failures)


def finished(cage: Cage, job: Job, command: Command, *more: str, resumes: int = 0) -> None:
    """Waits for a run, and resumes it as often as it ends without having been killed by the test."""
    while (code := command.wait()) != 0:
        assert code == 4 and "herd resume" in command.said and resumes > 0, (code, command.said)
        resumes -= 1
        command = cage.herd("resume", job.out, *job.options, *more)


def after_commits(job: Job, count: int, command: Command) -> None:
    """Returns when so many shards are committed."""

    def met() -> bool:
        assert command.code is None, f"the command ended before {count} shards were committed: {command.said}"
        return job.commits() >= count

    wait_until(f"{count} commits", met)


def assert_whole(job: Job, herd: Herd) -> None:
    """Every row stands once: as answered with its own prompt, or quarantined for the reason that it was made for."""
    outcome: Outcome = herd("verify", job.out, "--json", *job.options)
    assert outcome.code == 0 and '"complete": true' in outcome.out, outcome
    answered, quarantined = rows_of(job, "data"), rows_of(job, "quarantine")
    assert {r["id"]: f"{r['stage']}/{r['error_type']}" for r in quarantined} == job.failures
    assert {r["id"]: r["response"] for r in answered} == {k: v for k, v in job.texts.items() if k not in job.failures}
    assert len(answered) + len(quarantined) == len(job.texts)


def rows_of(job: Job, kind: str) -> list[dict[str, Any]]:
    store = job.store
    return [
        row
        for file in store.list_folder(f"{job.out}/{kind}")
        for row in pq.read_table(io.BytesIO(store.read(file.uri))).to_pylist()
    ]
