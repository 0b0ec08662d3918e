"""A job file on its way to another machine: as it stands, with overrides, and with its date left open until it runs there."""

import re
from collections.abc import Sequence

from cluster.manifests.kuberay import JobToSend
from cluster.manifests.text import yaml_text
from cluster.models import with_profile
from jobs.choosing import shaped
from jobs.dates import is_dated, parse_days, with_date
from jobs.jobfile import read_job
from pipeline.config_errors import parse_config


def job_to_send(
    path: str, overrides: Sequence[str] = (), *, ds: str | None = None, default_ds: str | None = None
) -> JobToSend:
    """The job in a YAML file, to be run elsewhere for the day `ds`; a job that uses the date and is given none runs for
    `default_ds`. What is sent is what was checked: the file's data with its overrides, without its comments.

    Raises:
        ConfigError: it does not check, or needs a day that is not given, or is given one that it does not use.
    """
    data = read_job(path, overrides)
    if not isinstance(data, dict):
        parse_config(data, where=path)  # says what is wrong with it
    day = ds or (default_ds if is_dated(data) else None)
    # checked for one of its days, or for today where it says none: `today` will be another day when it runs
    stand_in = parse_days(day)[0] if day is not None else None
    config = shaped(with_profile(parse_config(with_date(data, stand_in, where=path), where=path)))
    if isinstance(name := data.get("name"), str):  # of no day: what runs each night has one name
        config = config.model_copy(update={"name": re.sub(r"\{\{.*?\}\}", "ds", name)})
    return JobToSend(config, yaml_text([data]), day)
