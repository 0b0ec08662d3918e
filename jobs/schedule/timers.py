"""The same schedule for machines without Kubernetes: a systemd timer and its service, or a line of crontab. Pure."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.schedule.cron import Cron
from pipeline.errors import ConfigError

_WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
RETRY_S = 300
RETRIES = 5


@dataclass(frozen=True, slots=True)
class Scheduled:
    """What runs: the job's name, the command, the folder that relative paths of the job start from, and the seconds that a
    run gets to stop."""

    name: str
    command: tuple[str, ...]
    folder: str
    stop_s: int


def on_calendar(cron: Cron, zone: str | None = None) -> list[str]:
    """The expression as systemd's `OnCalendar=` lines: two where either of two kinds of days counts, since within one line
    both must match. Every expression that `parse_cron` lets through can be said."""
    time = f"{_numbers(cron.hours, 24)}:{_numbers(cron.minutes, 60)}:00" + (f" {zone}" if zone else "")
    month = _numbers(cron.months, 12)
    weekdays = ",".join(_WEEKDAYS[d] for d in cron.weekdays) + " " if len(cron.weekdays) < 7 else ""
    by_day = f"*-{month}-{_numbers(cron.days, 31)} {time}"
    if cron.is_either:
        return [by_day, f"{weekdays}*-{month}-* {time}"]
    return [weekdays + by_day]


def _numbers(values: Sequence[int], all_of_them: int) -> str:
    return "*" if len(values) == all_of_them else ",".join(f"{v:02}" for v in values)


def systemd_units(scheduled: Scheduled, cron: Cron, zone: str | None = None) -> dict[str, str]:
    """A service and its timer, by file name, fit for the system's or a user's own systemd. A run that fails resumably (exit
    status 4) is tried again; one that cannot get better by itself (2, 3) is not.

    Raises:
        ConfigError: a path cannot stand in a unit file.
    """
    unit = f"herd-{scheduled.name}"
    description = f"Herd job {scheduled.name}"
    service = f"""[Unit]
Description={description}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst={len(cron.minutes) + RETRIES}

[Service]
Type=exec
WorkingDirectory={_escaped(scheduled.folder)}
EnvironmentFile=-%E/herd/environment
ExecStart={" ".join([_program(scheduled.command[0]), *(_quoted(word) for word in scheduled.command[1:])])}
Restart=on-failure
RestartSec={RETRY_S}
RestartPreventExitStatus=2 3
KillMode=mixed
TimeoutStopSec={scheduled.stop_s}
"""
    lines = "\n".join(f"OnCalendar={line}" for line in on_calendar(cron, zone))
    timer = f"""[Unit]
Description={description}, by the clock

[Timer]
{lines}
AccuracySec=1s
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {f"{unit}.service": service, f"{unit}.timer": timer}


def _escaped(text: str) -> str:
    if not text.isprintable():
        raise ConfigError(f"A unit file cannot hold the path {text!r}", where="--target systemd", todo="Rename it.")
    return text.replace("%", "%%")


def _program(path: str) -> str:
    """The first word of a command, which systemd takes without quotes of any kind in it, and in which `$` is just that."""
    if set(path) & set("\"'\\"):
        raise ConfigError(
            f"systemd starts no program at {path!r}", where="--target systemd", todo="Install Herd elsewhere."
        )
    return '"' + _escaped(path) + '"' if re.search(r"\s", path) else _escaped(path)


def _quoted(word: str) -> str:
    escaped = _escaped(word).replace("$", "$$")
    if re.fullmatch(r"[A-Za-z0-9_./:=@+%,-]+", escaped):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def crontab_line(scheduled: Scheduled, cron: Cron) -> str:
    """One line of a crontab, in the time zone of its machine. What the run prints goes to a log beside the job.

    Raises:
        ConfigError: a path holds a line break.
    """
    log = f"{scheduled.folder.rstrip('/')}/herd-{scheduled.name}.log"
    words = f"cd {shlex.quote(scheduled.folder)} && {shlex.join(scheduled.command)} >> {shlex.quote(log)} 2>&1"
    if "\n" in words:
        raise ConfigError(
            "A line of crontab cannot hold a line break", where="--target crontab", todo="Rename the path."
        )
    return f"{cron.text} {words.replace('%', chr(92) + '%')}\n"  # a bare % would end the line
