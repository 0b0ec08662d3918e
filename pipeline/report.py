"""Figures over a run's answers: agreement with a gold column, in all and by group; and examples of quarantined rows."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pipeline.config import EvaluateConfig
from pipeline.output import Output


@dataclass(frozen=True, slots=True)
class Agreement:
    """Answers equal to the gold column, out of the answered rows that have one."""

    group: str
    right: int
    rows: int

    @property
    def fraction(self) -> float:
        return self.right / self.rows if self.rows else 0.0


def agreement(output: Output, config: EvaluateConfig) -> list[Agreement]:
    """The agreement of each group (by name) and then of all rows; one entry if there is no `by` column. Answers and
    gold values are compared as text."""
    columns = ["answer", config.gold, *([config.by] if config.by else [])]
    counts: dict[str, list[int]] = {}
    for record in output.records():
        if record.data is None:
            continue
        table = output.read_table(record.data["uri"], columns)
        groups = table[config.by].to_pylist() if config.by else ["all"] * table.num_rows
        for answer, gold, group in zip(
            table["answer"].to_pylist(), table[config.gold].to_pylist(), groups, strict=True
        ):
            if gold is not None:
                entry = counts.setdefault(str(group), [0, 0])
                entry[0] += str(answer) == str(gold)
                entry[1] += 1
    out = [Agreement(group, *counts[group]) for group in sorted(counts)]
    if config.by:
        out.append(Agreement("all", sum(a.right for a in out), sum(a.rows for a in out)))
    return out


def quarantined_rows(output: Output, limit: int, *, stage: str | None = None) -> list[dict[str, Any]]:
    """Up to `limit` quarantined rows, in plan order, optionally of one stage."""
    out: list[dict[str, Any]] = []
    for record in output.records():
        if record.quarantine is None:
            continue
        for row in output.read_table(record.quarantine["uri"]).to_pylist():
            if stage is None or row["stage"] == stage:
                out.append(row)
                if len(out) == limit:
                    return out
    return out


def examples_of(output: Output, reasons: Collection[str]) -> dict[str, str]:
    """For each reason (`stage/error_type`) where the first such row came from and what was said of it."""
    out: dict[str, str] = {}
    for record in output.records():
        if record.quarantine is None or not record.reasons.keys() & (set(reasons) - out.keys()):
            continue
        for row in output.read_table(record.quarantine["uri"]).to_pylist():
            origin = row["lineage"]
            where = (
                f"{str(origin['input_uri']).rsplit('/', 1)[-1]}, row group {origin['row_group']}, row {origin['row']}"
            )
            out.setdefault(f"{row['stage']}/{row['error_type']}", f"{where}: {row['message'][:200]}")
    return {reason: out[reason] for reason in reasons if reason in out}


def answered_rows(output: Output, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` answered rows, in plan order."""
    out: list[dict[str, Any]] = []
    for record in output.records():
        if record.data is not None and len(out) < limit:
            out.extend(output.read_table(record.data["uri"]).slice(0, limit - len(out)).to_pylist())
    return out
