from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs.dates import parse_days, with_date
from jobs.jobfile import adhoc_job, load_job
from pipeline.errors import ConfigError
from tests.unit.helpers import job_data

DAY = date(2026, 3, 1)


def dated(text: Any, key: str = "input.uri") -> Any:
    section, _, name = key.rpartition(".")
    data = job_data() | ({section: {name: text}} if section else {name: text})
    made = with_date(data, DAY)
    return made[section][name] if section else made[name]


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("s3://logs/dt={{ ds }}/*.parquet", "s3://logs/dt=2026-03-01/*.parquet"),
        ("{{ds_nodash}}", "20260301"),
        ("{{ ds_add(-1) }}", "2026-02-28"),
        ("{{ ds_add(31) }}", "2026-04-01"),
        ("{{ ds.strftime('%Y/%m/%d') }}", "2026/03/01"),
        ("a/{{ ds_add(-1).strftime('%Y%m%d') }}/{{ ds }}", "a/20260228/2026-03-01"),
        (["x/{{ ds }}", "y/*.parquet"], ["x/2026-03-01", "y/*.parquet"]),
    ],
)
def test_date_is_filled_in(text: Any, filled: Any) -> None:
    assert dated(text) == filled


@pytest.mark.parametrize("key", ["name", "output.uri", "input.uri"])
def test_date_is_filled_in_under_its_keys(key: str) -> None:
    assert dated("x-{{ ds_nodash }}", key) == "x-20260301"


@pytest.mark.parametrize("key", ["prompt.user", "prompt.system", "model"])
def test_date_under_other_keys_stays_as_it_is(key: str) -> None:
    section, _, name = key.rpartition(".")
    data = job_data(name="{{ ds }}")
    holder = data.setdefault(section, {}) if section else data
    holder[name] = "{{ ds }} {{ text }}"
    made = with_date(data, DAY)
    assert (made[section] if section else made)[name] == "{{ ds }} {{ text }}"


def test_date_leaves_the_given_data_as_it_was() -> None:
    data = job_data(input={"uri": "{{ ds }}"})
    with_date(data, DAY)
    assert data["input"]["uri"] == "{{ ds }}"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ds.__class__.__mro__[1].__subclasses__() }}",
        "{{ ds['__class__'] }}",
        "{{ ds.replace(year=1) }}",
        "{{ ds_add.__init__.__globals__ }}",
        "{{ ds | attr('__class__') }}",
        "{{ ds_add(-1).__reduce__() }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ row }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'a' * 10 ** 12 }}",
        "{% for i in range(10 ** 12) %}{{ ds }}{% endfor %}",
        "{% include '/etc/passwd' %}{{ ds }}",
        "{{ ds.strftime }}",
        "{{ ds_add(days=1) }}",
        "{{ [ds] }}",
        "{{ ds if true }}",
        "{{ ds.strftime.__self__ }}",
        "{{ macros.ds_add(ds, 1) }}",
        "{{ text }}",
    ],
)
def test_expression_that_is_none_over_the_date_is_refused_unevaluated(text: str) -> None:
    with pytest.raises(ConfigError, match="no expression over the date"):
        dated(text)


@pytest.mark.parametrize(
    "text", ["{{ ds_add('x') }}", "{{ ds_add(99999999) }}", "{{ ds() }}", "{{ ds_add }}", "{{ 'a'.strftime('b') }}"]
)
def test_date_that_cannot_be_written_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="The date cannot be written so"):
        dated(text)


def test_date_that_does_not_parse_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not parse"):
        dated("{{ ds")


@given(st.text(alphabet="{}%ds_.()-'[]|*+ aty1#", max_size=30))
def test_any_text_is_filled_or_refused(text: str) -> None:
    try:
        made = dated("{{ ds }}" + text)
    except ConfigError:
        return
    assert made.startswith("2026-03-01")


def test_job_that_needs_a_day_is_refused_without_one(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_data(input={"uri": "dt={{ ds }}"})))
    with pytest.raises(ConfigError, match=r"for a day, by its `input.uri`.*--ds 2026-11-25") as caught:
        load_job(str(path))
    assert str(path) in str(caught.value)
    assert load_job(str(path), day=DAY).input.uri == ["dt=2026-03-01"]


def test_day_for_a_job_that_uses_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_data()))
    with pytest.raises(ConfigError, match="--ds was given, and the job does not use the date"):
        load_job(str(path), day=DAY)


def test_override_may_hold_the_date(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job_data()))
    assert load_job(str(path), ["output.uri=out/{{ ds }}"], day=DAY).output.uri == "out/2026-03-01"


def test_adhoc_job_may_hold_the_date() -> None:
    given = {"input.uri": ("dt={{ ds }}",), "prompt.user": "hi", "engine.kind": "echo", "output.uri": "o"}
    assert adhoc_job(given, day=DAY).input.uri == ["dt=2026-03-01"]


def test_days_of_each_form() -> None:
    today = datetime.now(UTC).date()
    assert parse_days("2026-11-25") == [date(2026, 11, 25)]
    assert parse_days("2026-02-27..2026-03-01") == [date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1)]
    assert parse_days("yesterday")[0] + timedelta(1) in (today, today + timedelta(1))
    assert len(parse_days("yesterday..today")) == 2


@pytest.mark.parametrize("text", ["", "tomorrow", "2026-02-30", "20261125", "2026-1-1", "..", "2026-11-01..", "a..b"])
def test_days_of_no_form_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no date"):
        parse_days(text)


def test_days_of_a_range_backwards_refused() -> None:
    with pytest.raises(ConfigError, match="ends before it begins"):
        parse_days("2026-11-02..2026-11-01")
