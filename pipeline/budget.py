"""How many rows a run may quarantine, and when it is plain that it will be more. Pure.

A run ends early after `limits.min_sample_rows` rows of a session if the quarantine already holds more than the whole run
is allowed, or more than half of what was asked: then it is the job that is wrong (a template, a column), not the rows.
"""

from pipeline.config import LimitsConfig
from pipeline.errors import HerdError


class BudgetError(HerdError):
    """More rows are quarantined than the job allows; what is done is kept."""

    exit_code = 3


def allowed_rows(limits: LimitsConfig, rows_total: int) -> float:
    """Quarantined rows that a run of so many rows may end with."""
    by_fraction = limits.max_quarantined_fraction * max(1, rows_total)
    return by_fraction if limits.max_quarantined_rows is None else min(by_fraction, limits.max_quarantined_rows)


def overspent(limits: LimitsConfig, *, rows_total: int, rows_done: int, rows_quarantined: int) -> str | None:
    """Why a session that has done so many rows should end, or None."""
    if rows_done < limits.min_sample_rows:
        return None
    said = f"{rows_quarantined:,} of the first {rows_done:,} rows are quarantined"
    allowed = allowed_rows(limits, rows_total)
    if rows_quarantined > allowed:
        return f"{said}, and the whole run of {rows_total:,} may have {allowed:,.0f}"
    if rows_quarantined > rows_done * max(0.5, limits.max_quarantined_fraction):
        return f"{said}: that is the job's fault rather than the rows'"
    return None
