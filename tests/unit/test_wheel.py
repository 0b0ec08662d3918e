"""The package as a user gets it: a wheel, in an environment that holds nothing else."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

from tests.conftest import REPOSITORY


def test_wheel_in_an_empty_environment_imports_and_shows_its_help(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("herd_batch-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if "dist-info" not in n} == {"pipeline", "cluster", "jobs"}
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"
    uv = [str(Path(sys.executable).parent / "uv"), "pip", "install", "-q", "--python", str(python)]
    pins = tmp_path / "pins.txt"
    compiled = (REPOSITORY / "requirements" / "cpu.txt").read_text().splitlines()
    pins.write_text("\n".join(line.split(" ")[0] for line in compiled if "==" in line and not line.startswith(" ")))
    subprocess.run([*uv, str(wheel), "-c", str(pins)], check=True, capture_output=True)
    shown = subprocess.run([python.parent / "herd", "--help"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "herd run job.yaml" in shown.stdout
    imports = "import pipeline.run, cluster.connect, jobs.launch; print(pipeline.__file__)"
    found = subprocess.run([python, "-c", imports], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert str(tmp_path) in found.stdout
