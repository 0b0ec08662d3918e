"""From nothing to answers in one line."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import s3fs

from tests.conftest import DEMO, REPOSITORY, S3
from tests.e2e.conftest import Command, read_parts


def _in_one_line(command: Command, tmp_path: Path, given: str, *reach: str) -> None:
    herd = f"{shlex.quote(sys.executable)} -m jobs"
    out = tmp_path / "out"
    line = (
        f"{herd} run --model {DEMO / 'model'} --input {shlex.quote(given)} --image-column image "
        f"--prompt 'Which digit is this?' --max-tokens 4 --limit 20 --output {out} {shlex.join(reach)} && "
        f"{herd} show {out} -n 20"
    )
    done = subprocess.run(line, shell=True, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "20 in = 20 answered + 0 quarantined" in done.stdout
    rows = read_parts(out / "data").to_pylist()
    assert [r["id"] for r in rows] == [f"digit-{i:04d}" for i in range(20)]
    assert sum(r["response"] == str(r["label"]) for r in rows) >= 18
    assert all(f"{r['id']} " in done.stdout for r in rows)
    command("verify", out)


def test_look_at_the_demo_in_one_line_answers_and_shows_its_first_rows(command: Command, tmp_path: Path) -> None:
    _in_one_line(command, tmp_path, f"{DEMO}/data/*.parquet")


@pytest.mark.chaos
@pytest.mark.parametrize("s3", ["moto"], indirect=True, scope="session")
def test_look_at_s3_in_one_line_answers_and_shows_its_first_rows(command: Command, tmp_path: Path, s3: S3) -> None:
    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint_url, skip_instance_cache=True)
    for file in sorted((DEMO / "data").glob("*.parquet")):
        fs.put_file(str(file), f"bucket/x/{file.name}")
    reach = ["--set", f"input.storage.endpoint_url={s3.endpoint_url}"]
    _in_one_line(command, tmp_path, "s3://bucket/x/*.parquet", *reach)
