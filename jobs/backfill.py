"""A job over a range of days: one run a day, in turn, each with its own output."""

from collections.abc import Callable, Iterable, Sequence

from jobs.several import Outcome
from pipeline.config import RunConfig
from pipeline.errors import ConfigError


def check_outputs(days: Sequence[tuple[str, RunConfig]]) -> None:
    """Raises `ConfigError` where two days would write one output, unless it is one that runs share."""
    seen: dict[str, str] = {}
    for day, config in days:
        uri = config.output.uri.rstrip("/")
        if uri in seen and not config.input.incremental:
            raise ConfigError(
                f"The runs of {seen[uri]} and of {day} would have one output, {uri}",
                where="output.uri",
                todo="Write {{ ds }} into it, so that each day has its own.",
            )
        seen[uri] = day


def run_days(
    days: Sequence[tuple[str, RunConfig]],
    run_one: Callable[[str, RunConfig], Iterable[Outcome]],
    *,
    fail_fast: bool = False,
    observe: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """The outcomes of each day, in turn. A day that fails does not keep the others from being run, unless `fail_fast`
    says so; an interrupt does. A day that is not run any more has a note that says so."""
    outcomes: list[Outcome] = []
    is_stopped = False
    for day, config in days:
        if is_stopped:
            outcomes.append(Outcome(day, config.output.uri, note="not run"))
            continue
        for outcome in run_one(day, config):
            observe(outcome)
            outcomes.append(outcome)
            is_stopped |= outcome.was_interrupted or (fail_fast and outcome.exit_code != 0)
    return outcomes
