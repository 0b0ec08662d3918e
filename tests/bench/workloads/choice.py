"""All of the demo's digits as a choice of ten answers: Herd against raw vLLM with the same choice. The answers of the two
must be the same, row for row."""

from functools import partial
from pathlib import Path

from tests.bench import inputs
from tests.bench.measure import Bench, Claim, Figures
from tests.bench.sides import herd
from tests.bench.sides.process import told

MAX_TOKENS = 4


def prepare(folder: Path, quick: bool) -> Bench:
    table = inputs.digits()
    source = inputs.write(table, folder / "input", rows_per_group=512)
    speed = "rows_per_s"
    work = f"{table.num_rows:,} images, `choice`"
    claims = [Claim("choice/raw", work, "raw `LLM.chat`", "rows/s", ("herd", speed), ("raw", speed), 1.2)]
    answers: set[str] = set()
    return Bench(
        "choice",
        " ".join((__doc__ or "").split()),
        {"herd": partial(_herd, source, answers), "raw": partial(_raw, source, answers)},
        claims,
    )


def _agree(answers: set[str], digest: str) -> None:
    answers.add(digest)
    assert len(answers) == 1, "the sides gave different answers"


def _herd(source: Path, answers: set[str], folder: Path) -> Figures:
    job = herd.vllm_job(
        source, MAX_TOKENS, input={"uri": str(source), "images": ["image"]}, answer={"choice": inputs.DIGITS}
    )
    run = herd.run(folder, job)
    _agree(answers, run.answers_sha256())
    return run.figures


def _raw(source: Path, answers: set[str], folder: Path) -> Figures:
    options = ["--image-column", "image", "--choice", ",".join(inputs.DIGITS), "--max-tokens", MAX_TOKENS]
    found = told("tests.bench.sides.raw_vllm", source, *options)
    _agree(answers, found["answers_sha256"])
    return {"rows_per_s": found["rows_per_s"]}
