import subprocess
import sys

import pytest

HEAVY = ("ray", "vllm", "torch", "transformers")


@pytest.mark.parametrize(
    "modules",
    [
        "pipeline.config pipeline.config_errors pipeline.plan pipeline.columns pipeline.answers pipeline.request",
        "pipeline.output pipeline.verify pipeline.footers pipeline.render.rows pipeline.claims pipeline.part",
        "pipeline.survey pipeline.outcome cluster.tokens cluster.estimate cluster.speed jobs.planning",
    ],
)
def test_centre_imports_nothing_heavy(modules: str) -> None:
    code = f"""
import importlib, sys
for name in {modules.split()!r}:
    importlib.import_module(name)
    print(name, *[heavy for heavy in {HEAVY!r} if heavy in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == modules.split()
