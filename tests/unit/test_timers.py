"""Schedules for systemd and cron: the same times as the expression, held against systemd itself where there is one."""

import os
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.schedule.cron import next_runs, parse_cron
from jobs.schedule.timers import Scheduled, crontab_line, on_calendar, systemd_units
from pipeline.errors import ConfigError

ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not on this machine")
COWS = Scheduled("cows", ("/opt/herd/bin/herd", "run", "/srv/cows.yaml", "--ds", "today"), "/srv", 60)


def asked_of_systemd(lines: list[str], after: datetime, count: int) -> list[datetime]:
    """The next times of `OnCalendar=` lines as systemd itself finds them."""
    assert ANALYZE is not None
    found = set()
    for line in lines:
        base = f"--base-time={after:%Y-%m-%d %H:%M:%S} UTC"
        command = [ANALYZE, "calendar", f"--iterations={count}", base, line]
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"}
        ).stdout
        for row in said.splitlines():
            what, _, value = row.strip().partition(": ")
            if what == "Next elapse" or what.startswith("Iter. #"):
                found.add(datetime.strptime(value.strip(), "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC))
    return sorted(found)[:count]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("0 2 * * *", ["*-*-* 02:00:00"]),
        ("*/15 * * * *", ["*-*-* *:00,15,30,45:00"]),
        ("0 9-17/4 * * mon-fri", ["Mon,Tue,Wed,Thu,Fri *-*-* 09,13,17:00:00"]),
        ("30 6 1,15 */6 *", ["*-01,07-01,15 06:30:00"]),
        ("0 0 * * 7", ["Sun *-*-* 00:00:00"]),
        ("0 0 13 * fri", ["*-*-13 00:00:00", "Fri *-*-* 00:00:00"]),
    ],
)
def test_on_calendar_of_known_expressions_is_the_known_lines(text: str, lines: list[str]) -> None:
    assert on_calendar(parse_cron(text)) == lines


def test_on_calendar_in_a_time_zone_names_it_on_every_line() -> None:
    lines = on_calendar(parse_cron("0 0 13 * fri"), "Europe/Paris")
    assert lines == ["*-*-13 00:00:00 Europe/Paris", "Fri *-*-* 00:00:00 Europe/Paris"]


def some(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    spans = st.tuples(number, number, st.integers(1, 9)).map(lambda t: f"{min(t[:2])}-{max(t[:2])}/{t[2]}")
    return (
        st.just("*") | number.map(str) | spans | st.lists(number.map(str) | spans, min_size=2, max_size=3).map(",".join)
    )


@needs_systemd
@settings(max_examples=40)
@given(st.tuples(some(0, 59), some(0, 23), some(1, 28), some(1, 12), some(0, 7)).map(" ".join))
def test_on_calendar_of_any_expression_means_the_same_times_to_systemd(text: str) -> None:
    cron, after = parse_cron(text), datetime(2026, 11, 25, 10, 7, 30, tzinfo=UTC)
    assert asked_of_systemd(on_calendar(cron), after, 5) == next_runs(cron, after, 5)


@needs_systemd
def test_systemd_units_pass_systemds_own_check(tmp_path: Path) -> None:
    folder = tmp_path / "a %h $HOME 'b\" \\c"
    folder.mkdir()
    program = tmp_path / "a %h $HOME c" / "herd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    scheduled = Scheduled("cows", (str(program), "run", str(folder / "job.yaml"), "--set", "a=[1, 2]"), str(folder), 60)
    for name, text in systemd_units(scheduled, parse_cron("0 2 1 * mon"), "UTC").items():
        (tmp_path / name).write_text(text)
    assert ANALYZE is not None
    command = [ANALYZE, "verify", "--man=no", str(tmp_path / "herd-cows.timer"), str(tmp_path / "herd-cows.service")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    )
    assert "herd-cows" not in done.stderr, done.stderr
    assert str(folder) not in done.stderr, done.stderr


def test_systemd_units_try_again_what_can_be_resumed_and_wait_for_a_run_to_stop() -> None:
    units = systemd_units(COWS, parse_cron("*/10 2 * * *"))
    service = units["herd-cows.service"].splitlines()
    assert "ExecStart=/opt/herd/bin/herd run /srv/cows.yaml --ds today" in service
    assert "WorkingDirectory=/srv" in service
    assert "RestartPreventExitStatus=2 3" in service
    assert "TimeoutStopSec=60" in service
    assert "StartLimitBurst=11" in service  # six starts an hour by the clock, and five more
    assert "OnCalendar=*-*-* 02:00,10,20,30,40,50:00" in units["herd-cows.timer"].splitlines()


def test_systemd_units_quote_what_systemd_would_expand() -> None:
    odd = Scheduled("cows", ("/bin/herd", "run", '/a b/%n$X"\\'), "/a b/%n", 60)
    service = systemd_units(odd, parse_cron("0 2 * * *"))["herd-cows.service"]
    assert 'ExecStart=/bin/herd run "/a b/%%n$$X\\"\\\\"\n' in service
    assert "WorkingDirectory=/a b/%%n\n" in service


def test_systemd_units_over_a_path_with_a_line_break_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot hold the path"):
        systemd_units(
            Scheduled("cows", ("/bin/herd", "run", "/a\nExecStart=/bin/sh"), "/srv", 60), parse_cron("0 2 * * *")
        )


def test_systemd_units_with_a_program_that_systemd_cannot_start_are_refused() -> None:
    with pytest.raises(ConfigError, match="systemd starts no program"):
        systemd_units(Scheduled("cows", ("/it's/herd", "run"), "/srv", 60), parse_cron("0 2 * * *"))


def test_crontab_line_runs_the_command_in_its_folder_and_keeps_what_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "a 'b' %c"
    folder.mkdir()
    command = ("echo", "100%", "$HOME", "it's")
    line = crontab_line(Scheduled("cows", command, str(folder), 60), parse_cron("0 2 * * 7"))
    times, words = line.split(" cd ", 1)
    assert times == "0 2 * * 0"
    assert "%" not in words.replace("\\%", "")
    said_by_cron = "cd " + words.replace("\\%", "%")  # what cron makes of the line before a shell sees it
    subprocess.run(["/bin/sh", "-c", said_by_cron], check=True)
    assert (folder / "herd-cows.log").read_text() == "100% $HOME it's\n"
    assert shlex.split(said_by_cron)[1] == str(folder)


def test_crontab_line_over_a_path_with_a_line_break_is_refused() -> None:
    with pytest.raises(ConfigError, match="line break"):
        crontab_line(Scheduled("cows", ("/bin/herd", "a\n* * * * * rm"), "/srv", 60), parse_cron("0 2 * * *"))
