"""Measures Herd against its yardsticks and writes a dated report to `tests/bench/reports/`.

    python -m tests.bench [NAMES...] [--quick] [--rounds N]

With --quick nothing is written: the workloads are small, and a ratio beyond its floor (`tests.bench.floors`) is the
command's exit code, 1.
"""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench import report
from tests.bench.floors import FLOORS, QUICK
from tests.bench.measure import Measured, measured

NAMES = ("text", "images", "choice", "echo", "cluster", "straggler", "cache", "prefix", "cores", "growth")
FULL_ROUNDS = 3


def say(sentence: str) -> None:
    print(sentence, flush=True)


def run(name: str, folder: Path, rounds: int, quick: bool, stem: Path) -> Measured:
    """One benchmark, in a folder that is gone afterwards; its plots begin with `stem`."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        bench = importlib.import_module(f"tests.bench.workloads.{name}").prepare(Path(scratch, "rows"), quick)
        found = measured(bench, 1 if bench.appendix else rounds, Path(scratch), say)
        if bench.appendix is not None:
            found.appendix = bench.appendix(Path(scratch, "appendix"), stem)
    return found


def below_floor(found: Sequence[Measured]) -> list[str]:
    """A sentence for each ratio that does not reach its floor, or that there is none of."""
    out = []
    for m in found:
        for claim in m.bench.claims:
            floor, ratio = FLOORS.get(claim.key), m.ratio(claim)
            if floor is None or (ratio is not None and claim.holds(ratio, floor)):
                continue
            shown = "could not be measured" if ratio is None else f"is {ratio:.2f}"
            out.append(f"{claim.key} {shown}; its {'ceiling' if claim.at_most else 'floor'} is {floor:.2f}")
    return out


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    arguments.add_argument("--quick", action="store_true", help="small, without a report, held against floors")
    arguments.add_argument("--rounds", type=int, help=f"default: {FULL_ROUNDS}, or 1 with --quick")
    given = arguments.parse_args()
    if unknown := set(given.names) - set(NAMES):
        arguments.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    names = given.names or (QUICK if given.quick else NAMES)
    rounds = given.rounds or (1 if given.quick else FULL_ROUNDS)
    command = " ".join(["python -m tests.bench", *given.names, *(["--rounds", str(rounds)] if given.rounds else [])])
    found: list[Measured] = []
    path = report.stem("-".join(["performance", *given.names]))
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found.append(run(name, Path(folder), rounds, given.quick, path))
            if not given.quick:
                report.write(found, command, path)  # what is measured is kept, whatever becomes of the rest
    say("\n".join(report.table(found)))
    failures = below_floor(found) if given.quick else []
    for sentence in failures:
        say(sentence)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
