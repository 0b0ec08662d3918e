"""Cron expressions: what is let through, what is refused and how, and the times that they name."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.schedule.cron import Cron, find_zone, next_runs, parse_cron
from pipeline.errors import ConfigError

NOON = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)  # a Wednesday


def runs(text: str, count: int = 3, after: datetime = NOON) -> list[str]:
    return [f"{run:%a %Y-%m-%d %H:%M}" for run in next_runs(parse_cron(text), after, count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 2 * * *", ["Thu 2026-11-26 02:00", "Fri 2026-11-27 02:00", "Sat 2026-11-28 02:00"]),
        ("*/20 12 * * *", ["Wed 2026-11-25 12:20", "Wed 2026-11-25 12:40", "Thu 2026-11-26 12:00"]),
        ("30 1-3/2,23 * * *", ["Wed 2026-11-25 23:30", "Thu 2026-11-26 01:30", "Thu 2026-11-26 03:30"]),
        ("0 0 * * mon-wed", ["Mon 2026-11-30 00:00", "Tue 2026-12-01 00:00", "Wed 2026-12-02 00:00"]),
        ("0 0 * * 5-7", ["Fri 2026-11-27 00:00", "Sat 2026-11-28 00:00", "Sun 2026-11-29 00:00"]),
        ("0 0 1 jan,JUL *", ["Fri 2027-01-01 00:00", "Thu 2027-07-01 00:00", "Sat 2028-01-01 00:00"]),
        ("0 0 29-31 * *", ["Sun 2026-11-29 00:00", "Mon 2026-11-30 00:00", "Tue 2026-12-29 00:00"]),
        ("0 0 29 2 *", ["Tue 2028-02-29 00:00", "Sun 2032-02-29 00:00", "Fri 2036-02-29 00:00"]),
        # both kinds of days restricted: either counts
        ("0 0 1 * 5", ["Fri 2026-11-27 00:00", "Tue 2026-12-01 00:00", "Fri 2026-12-04 00:00"]),
        # a weekday of every kind is still a restriction, as cron daemons have it
        ("0 0 1 * 0-6", ["Thu 2026-11-26 00:00", "Fri 2026-11-27 00:00", "Sat 2026-11-28 00:00"]),
    ],
)
def test_next_runs_of_known_expressions_are_the_known_times(text: str, expected: list[str]) -> None:
    assert runs(text) == expected


def test_next_runs_begin_after_the_given_time_and_not_at_it() -> None:
    assert runs("0 12 * * *", 1) == ["Thu 2026-11-26 12:00"]
    assert runs("0 12 * * *", 1, NOON - timedelta(seconds=1)) == ["Wed 2026-11-25 12:00"]


def test_next_runs_leave_out_a_time_that_the_clocks_skip_and_take_a_double_one_once() -> None:
    paris = ZoneInfo("Europe/Paris")
    spring = datetime(2026, 3, 28, 12, 0, tzinfo=paris)
    assert runs("30 2 * * *", 2, spring) == ["Mon 2026-03-30 02:30", "Tue 2026-03-31 02:30"]
    autumn = datetime(2026, 10, 24, 12, 0, tzinfo=paris)
    assert [run.isoformat() for run in next_runs(parse_cron("30 2 * * *"), autumn, 2)] == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("00 02 * * *", "0 2 * * *"),
        ("0  2 * JAN-mar sun", "0 2 * 1-3 0"),
        ("*/1 * * * *", "* * * * *"),
        ("5-59/15 * * * 5-7", "5-59/15 * * * 5,6,0"),
        ("1,3-5 0 */2 * *", "1,3-5 0 */2 * *"),
        ("0 0 * * *,2", "0 0 * * *"),
    ],
)
def test_parse_cron_writes_the_expression_as_kubernetes_takes_it(text: str, written: str) -> None:
    assert parse_cron(text).text == written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has 0 fields"),
        ("0 2 * *", "it has 4 fields"),
        ("0 0 2 * * *", "it has 6 fields"),
        ("@daily", 'Write "0 0 * * *"'),
        ("@reboot", "it has 1 fields"),
        ("60 2 * * *", "`60` is no minute"),
        ("0 24 * * *", "`24` is no hour"),
        ("0 0 0 * *", "`0` is no day of the month"),
        ("0 0 * 13 *", "`13` is no month"),
        ("0 0 * * 8", "`8` is no day of the week"),
        ("0 0 * * funday", "`funday` is no day of the week"),
        ("0 mon * * *", "`mon` is no hour"),
        ("0 0 L * *", "`l` is no day of the month"),
        ("0 0 ? * *", "`?` is no day of the month"),
        ("0 0 * * 5#2", "is no day of the week"),
        ("*/0 * * * *", "`*/0` is no minute"),
        ("1, * * * *", "`` is no minute"),
        ("-5 * * * *", "`-5` is no minute"),
        ("٣ * * * *", "is no minute"),
        ("5/15 * * * *", "Write 5-59/15"),
        ("0 22-2 * * *", "ends before it begins"),
        ("0 0 * * fri-mon", "ends before it begins"),
        ("0 0 */2 * 1", "disagree on its days"),
        ("0 0 1 * */2", "disagree on its days"),
        ("0 0 30 2 *", "no such day ever comes"),
        ("0 0 31 4,6 *", "no such day ever comes"),
    ],
)
def test_parse_cron_of_what_cannot_be_used_says_why(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cron(text)
    assert said in str(caught.value)


def items(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """One field as text, with the values that it means worked out in another way than by parsing it."""
    number = st.integers(low, high)
    spans = st.tuples(number, number, st.integers(1, 7)).map(lambda t: (min(t[:2]), max(t[:2]), t[2]))
    lists = st.lists(spans, min_size=1, max_size=3)
    return lists.map(
        lambda parts: (
            ",".join(f"{a}-{b}/{s}" for a, b, s in parts),
            frozenset(v for a, b, s in parts for v in range(low, high + 1) if a <= v <= b and (v - a) % s == 0),
        )
    )


def fields(low: int, high: int, last: int | None = None) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """Fields with numbers up to `high`, or `*`, which reaches to `last`."""
    return items(low, high) | st.just(("*", frozenset(range(low, (last or high) + 1))))


@given(
    fields(0, 59),
    fields(0, 23),
    fields(1, 28, 31),  # numbers up to 28, so that every expression names a day that comes
    fields(1, 12),
    fields(0, 6),
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1)),
)
def test_next_runs_of_any_expression_are_just_the_minutes_that_match(
    minute: tuple[str, frozenset[int]],
    hour: tuple[str, frozenset[int]],
    day: tuple[str, frozenset[int]],
    month: tuple[str, frozenset[int]],
    weekday: tuple[str, frozenset[int]],
    after: datetime,
) -> None:
    parts = (minute, hour, day, month, weekday)
    start = after.replace(second=0, microsecond=0, tzinfo=UTC)
    cron = parse_cron(" ".join(p[0] for p in parts))

    def is_due(moment: datetime) -> bool:
        days = [moment.day in day[1], moment.isoweekday() % 7 in weekday[1]]
        either = day[0] != "*" and weekday[0] != "*"
        on_day = any(days) if either else all(days)
        return moment.minute in minute[1] and moment.hour in hour[1] and moment.month in month[1] and on_day

    minutes = [start + timedelta(minutes=n) for n in range(1, 2 * 24 * 60)]
    expected = [moment for moment in minutes if is_due(moment)]
    found = next_runs(cron, start, len(expected) + 1)
    assert found[:-1] == expected
    assert is_due(found[-1]) and found[-1] > minutes[-1]


def test_matches_day_follows_the_kind_of_restriction() -> None:
    both = parse_cron("0 0 13 * 5")
    assert isinstance(both, Cron) and both.is_either
    assert both.matches_day(date(2026, 11, 13)) and both.matches_day(date(2026, 11, 20))
    assert not both.matches_day(date(2026, 11, 19))


@pytest.mark.parametrize("name", ["Europe/Nowhere", "", "/etc/localtime", "../UTC", "Local", "a\0b"])
def test_find_zone_of_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="There is no time zone"):
        find_zone(name)
