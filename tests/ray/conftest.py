"""One local Ray cluster for all tests of this folder, and small jobs on the echo engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from cluster.connect import connected
from jobs.jobfile import load_job
from jobs.launch import Launch, run_job
from tests.conftest import S3_ENVIRONMENT


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    """A cluster of this machine's cores; commands run in this process use it. Its processes keep the environment in which
    it starts, so the credentials of the S3 servers are there from the beginning."""
    with pytest.MonkeyPatch.context() as environment:
        for key, value in S3_ENVIRONMENT.items():
            environment.setenv(key, value)
        with connected(None):
            yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder with `job.yaml`, `input/` (two files of 50 rows in groups of 20) and the finished run in `out/`, of which
    each tenth row is quarantined. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "input").mkdir()
    for n in range(2):
        numbers = range(n * 50, n * 50 + 50)
        part = {"id": [f"row-{i:05d}" for i in numbers], "text": [f"question number {i}" for i in numbers]}
        pq.write_table(pa.table(part), folder / "input" / f"part-{n}.parquet", row_group_size=20)
    job = {
        "name": "contract",
        "input": {"uri": str(folder / "input")},
        "prompt": {"user": "{{ text }}?"},
        "engine": {"kind": "echo", "echo": {"fail_on": r"7\?"}},
        "limits": {"max_quarantined_fraction": 0.1},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run_job(load_job(str(folder / "job.yaml")), Launch(quiet=True))
    return folder


@pytest.fixture
def write_input(tmp_path: Path) -> Callable[..., Path]:
    """Writes a table of `id` and `text` columns as Parquet files, and returns their folder."""

    def write(num_rows: int = 100, *, num_files: int = 2, rows_per_group: int = 20, texts: Any = None) -> Path:
        folder = tmp_path / "input"
        folder.mkdir(exist_ok=True)
        texts = texts or [f"question number {i}" for i in range(num_rows)]
        table = pa.table({"id": [f"row-{i:05d}" for i in range(num_rows)], "text": pa.array(texts, pa.string())})
        share = -(-num_rows // num_files)
        for n in range(num_files):
            part = table.slice(n * share, share)
            pq.write_table(part, folder / f"part-{n}.parquet", row_group_size=rows_per_group)
        return folder

    return write


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[..., Path]:
    """Writes a job file for the echo engine over `input/`; keyword arguments replace its sections."""

    def write(**sections: Any) -> Path:
        job = {
            "name": "test",
            "input": {"uri": str(tmp_path / "input")},
            "prompt": {"user": "{{ text }}"},
            "engine": {"kind": "echo"},
            "output": {"uri": str(tmp_path / "out")},
            **sections,
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump({k: v for k, v in job.items() if v is not None}))
        return path

    return write
