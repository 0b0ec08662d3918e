"""Runs `herd ARGS...` in this process and tells what that cost it: CPU seconds and peak memory.

    python -m tests.bench.sides.driver run job.yaml --json

Prints what the command prints, then one JSON line: cpu_s, peak_mib, seconds.
"""

import json
import sys
import time

from jobs.cli import cli
from tests.bench.sides.memory import peak_mib


def main() -> None:
    began = time.perf_counter()
    cli.main(sys.argv[1:], prog_name="herd", standalone_mode=False)
    told = {"cpu_s": time.process_time(), "peak_mib": peak_mib(), "seconds": time.perf_counter() - began}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
