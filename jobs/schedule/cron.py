"""Cron expressions: five fields, checked, and the times that they name. Pure.

Kubernetes (robfig/cron), cron daemons and systemd must take an expression for the same times, so what they read differently
is refused: `5/15`, and a `*` among the days of the month or of the week where the other of the two is restricted as well
(cron daemons want both to match then, Kubernetes either). Where both are plainly restricted all three want either.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from pipeline.errors import ConfigError

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_ITEM = re.compile(r"(?P<star>\*)|(?P<first>[0-9]+|[a-z]+)(-(?P<last>[0-9]+|[a-z]+))?", re.ASCII)
_MACROS = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0"}
_MACROS |= {"@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}
SEARCHED_DAYS = 9 * 366  # from one day that matches to the next: those of a 29th of February may be eight years apart


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression. `text` is the same in numbers, Sunday as 0; weekdays count from Sunday, 0, to Saturday."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    is_either: bool
    """A day matches if the day of the month or the weekday does; otherwise both must."""

    def matches_day(self, day: date) -> bool:
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        on_day = by_day or by_weekday if self.is_either else by_day and by_weekday
        return day.month in self.months and on_day


def parse_cron(text: str) -> Cron:
    """Reads `minute hour day-of-month month day-of-week`: `*`, numbers, names of months and weekdays, ranges, steps, lists.

    Raises:
        ConfigError: it is none, names no time at all, or is one that schedulers read differently.
    """
    parts = text.split()
    if text.strip() in _MACROS:
        raise _bad(text, "it has not five fields", f'Write "{_MACROS[text.strip()]}".')
    if len(parts) != 5:
        raise _bad(
            text, f"it has {len(parts)} fields and not five", 'Write "minute hour day month weekday": "0 2 * * *".'
        )
    minute, hour = _field(parts[0], "minute", 0, 59), _field(parts[1], "hour", 0, 23)
    day, month = _field(parts[2], "day of the month", 1, 31), _field(parts[3], "month", 1, 12, _MONTHS)
    weekday = _field(parts[4], "day of the week", 0, 7, _WEEKDAYS)
    is_either = day[0] != "*" and weekday[0] != "*"
    if is_either and "*" in day[0] + weekday[0]:
        raise _bad(text, "cron and Kubernetes disagree on its days", "Write out the days instead of `*/n`.")
    written = " ".join(field[0] for field in (minute, hour, day, month, weekday))
    cron = Cron(written, minute[1], hour[1], day[1], month[1], weekday[1], is_either)
    if not next_runs(cron, datetime.now(UTC), 1):
        raise _bad(text, "no such day ever comes", "Look at its day and its month.")
    return cron


def _bad(text: str, why: str, todo: str) -> ConfigError:
    return ConfigError(f"The cron expression cannot be used: {why}", where=f'--cron: "{text}"', todo=todo)


def _field(text: str, what: str, low: int, high: int, names: tuple[str, ...] = ()) -> tuple[str, tuple[int, ...]]:
    """One field in numbers, and its values in order."""
    written: list[str] = []
    values: set[int] = set()
    for item in text.lower().split(","):
        span, slash, every = item.partition("/")
        found = _ITEM.fullmatch(span)
        if found is None or (slash and not re.fullmatch(r"[1-9][0-9]*", every)):
            raise _bad(text, f"`{item}` is no {what}", "Write a number, a range 1-5, a step */15, or a list of these.")
        step = int(every or 1)
        if found["star"]:
            first, last = low, min(high, 6) if names is _WEEKDAYS else high
            written.append("*" if step == 1 else f"*/{step}")
        else:
            first, last = (_number(found[end] or found["first"], what, low, high, names) for end in ("first", "last"))
            if slash and not found["last"]:
                raise _bad(
                    text, f"`{item}` is read differently by different schedulers", f"Write {first}-{high}/{step}."
                )
            if last < first:
                raise _bad(text, f"`{span}` ends before it begins", "Write it as two ranges.")
            written.append(_written(first, last, step, names))
        values.update(v % 7 if names is _WEEKDAYS else v for v in range(first, last + 1, step))
    return ("*" if "*" in written else ",".join(written)), tuple(sorted(values))


def _number(text: str, what: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + (1 if names is _MONTHS else 0)
    if not text.isdigit() or not low <= int(text) <= high:
        raise _bad(text, f"`{text}` is no {what}", f"It is {low} to {high}{' or a name' if names else ''}.")
    return int(text)


def _written(first: int, last: int, step: int, names: tuple[str, ...]) -> str:
    if names is _WEEKDAYS and last == 7:  # Kubernetes knows Sunday as 0 only
        return ",".join(str(v % 7) for v in range(first, last + 1, step))
    if first == last:
        return str(first)
    return f"{first}-{last}" + (f"/{step}" if step > 1 else "")


def next_runs(cron: Cron, after: datetime, count: int) -> list[datetime]:
    """The next `count` times later than `after`, in its time zone. Times that a change of clocks leaves out do not come; of
    times that come twice the first counts."""
    found: list[datetime] = []
    for run in _runs_from(cron, after):
        if len(found) == count:
            break
        found.append(run)
    return found


def _runs_from(cron: Cron, after: datetime) -> Iterator[datetime]:
    day, zone = after.date() - timedelta(1), after.tzinfo
    last = day
    while (day - last).days < SEARCHED_DAYS:
        day += timedelta(1)
        if not cron.matches_day(day):
            continue
        last = day
        for hour in cron.hours:
            for minute in cron.minutes:
                run = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                there = run.astimezone(UTC)
                if there.astimezone(zone).replace(tzinfo=None) == run.replace(tzinfo=None) and there > after.astimezone(
                    UTC
                ):
                    yield run


def find_zone(name: str) -> ZoneInfo:
    """A time zone by its name in the IANA database.

    Raises:
        ConfigError: there is none.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # what zoneinfo raises depends on what the name looks like as a path
        raise ConfigError(
            f"There is no time zone `{name}`", where="--time-zone", todo="Write one such as Europe/Paris or UTC."
        ) from None
