"""Real vLLM that really dies: an engine killed from outside in mid-shard, and an image that kills it from inside.

The image needs no help from the test. On vLLM's CPU backend a step whose vision batch is a single tile ends the process:
the demo's images have five tiles each, and the poison has one.
"""

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.conftest import DEMO, REPOSITORY
from tests.e2e.conftest import Command, read_parts

NUM_ROWS, POISON = 120, 50


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run over 119 digits and the poison, whose engine was killed once while it answered."""
    folder = tmp_path_factory.mktemp("deaths")
    rows = pq.read_table(DEMO / "data" / "digits-00000.parquet").to_pylist()
    rows = [row for row in rows if not row["id"].startswith("broken")][:NUM_ROWS]
    tile = io.BytesIO()
    Image.open(io.BytesIO(rows[POISON]["image"]["bytes"])).resize((56, 56)).save(tile, "PNG")
    rows[POISON]["image"]["bytes"] = tile.getvalue()
    schema = pq.read_schema(DEMO / "data" / "digits-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "digits.parquet", row_group_size=20)
    shutil.copytree(DEMO / "model", folder / "model")
    processor = json.loads((folder / "model/processor_config.json").read_text())
    processor["image_processor"]["resize_to_max_canvas"] = False  # a small image stays a small one
    (folder / "model/processor_config.json").write_text(json.dumps(processor))
    job = {
        **yaml.safe_load((DEMO / "digits.yaml").read_text()),
        "input": {"uri": str(folder / "digits.parquet"), "images": ["image"], "carry": ["id", "label", "split"]},
        "model": str(folder / "model"),
        # one request at a time, so that the single tile is a vision batch of its own
        "engine": {"max_model_len": 512, "dtype": "bfloat16", "max_num_seqs": 1},
        "pool": {"shards_in_flight": 1},
        "limits": {"max_quarantined_fraction": 0.1},
        "output": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    run = subprocess.Popen([sys.executable, "-m", "jobs", "run", str(folder / "job.yaml")], cwd=REPOSITORY)
    deadline = time.monotonic() + 200
    while not (folder / "out/commits/000000.json").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)  # until another process has committed something
    below = psutil.Process(run.pid).children(recursive=True)
    (engine,) = [process for process in below if process.name() == "herd-engine"]
    engine.kill()
    assert run.wait(timeout=280) == 0
    return folder / "out"


def test_engine_that_is_killed_costs_no_row_and_a_row_that_kills_it_costs_itself(out: Path) -> None:
    bad = read_parts(out / "quarantine").to_pylist()
    assert [(r["lineage"]["row_group"], r["lineage"]["row"]) for r in bad] == [divmod(POISON, 20)]
    assert (bad[0]["stage"], bad[0]["error_type"], bad[0]["attempts"]) == ("engine", "engine_death", 2)
    assert read_parts(out / "data").num_rows == NUM_ROWS - 1


def test_run_of_engines_that_died_verifies(out: Path, command: Command) -> None:
    verdict = json.loads(command("verify", out, "--json").stdout)
    assert verdict["complete"] and verdict["rows_ok"] == NUM_ROWS - 1 and verdict["rows_quarantined"] == 1


def test_run_of_engines_that_died_says_so(out: Path) -> None:
    session = json.loads((out / "run.json").read_text())["sessions"][-1]
    assert session["engine_deaths"] in (2, 3)  # the one from outside may come when it is the poison's turn
    assert sum("SIGKILL" in event for event in session["events"]) == 1
