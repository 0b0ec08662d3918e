"""Jobs on a Ray cluster through its Jobs API: submit, look, follow, stop. The only place that knows Ray's client.

What is submitted is a folder: the job file, and unless the cluster has Herd installed, Herd's own packages, which the
nodes then use before any that they have. A wheel would be installed by pip on every node with all that it depends on.
Submitting the same job again finds the one that runs.
"""

import asyncio
import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.parcel import digest, entrypoint, new_id, pack
from cluster.portable import is_loopback
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, HerdError

STOP_SLACK_S = 60
"""Seconds beyond `limits.drain_s` that a job has to end by itself when it is stopped; Ray's own 3 s are too few."""
SILENCE_S = 60.0
"""Seconds without a line after which logs are asked for anew: a machine that slept holds a dead connection."""
POLL_S = 1.0
TRIES = 5
"""Times that a job is sent, with twice the wait each time."""
PATIENCE = 60
"""Times in a row, some seconds apart, that a cluster may be out of reach while its job is followed."""
EXIT_CODES = (0, 2, 3, 4, 130)


@dataclass(frozen=True, slots=True)
class JobState:
    """A submitted job as the cluster tells it. Times are ISO 8601 in UTC."""

    id: str
    state: str
    """`pending`, `running`, `succeeded`, `failed` or `stopped`."""
    output: str | None = None
    """Where its run writes."""
    driver_exit_code: int | None = None
    """The exit status of `herd run` there; None while it runs, and where it was stopped or could not start."""
    submitted_at: str | None = None
    ended_at: str | None = None
    message: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("succeeded", "failed", "stopped")

    @property
    def exit_code(self) -> int:
        """The exit status of a command that waited for it, as `herd run` would have had it."""
        if self.state == "stopped":
            return 130
        if self.state == "succeeded":
            return 0
        return self.driver_exit_code if self.driver_exit_code in EXIT_CODES and self.driver_exit_code else 4

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that the cluster has; not `is_new` where it ran already."""

    id: str
    is_new: bool


class UnreachableError(HerdError):
    """A cluster whose Jobs API cannot be reached now."""


class RefusedError(HerdError):
    """What the Jobs API answers with an HTTP status of 400 or more. From 500 on it may pass: a head that has just started has
    no agent yet."""

    status: int = 400


class JobsApi:
    """The Jobs API of one cluster. `address` is its dashboard (`http://head:8265`), `auto`, `host:port` of its head, or
    `ray://`; None: `RAY_API_SERVER_ADDRESS` or `RAY_ADDRESS`, else a cluster on this machine.

    Every method raises `HerdError` where the cluster does not answer, and `ConfigError` for a job that it does not have.
    """

    def __init__(self, address: str | None) -> None:
        shown = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "auto"
        with _faults(shown), _only_address(address):
            self._client = _client(address)
        self.address = str(self._client.get_address())

    @property
    def is_here(self) -> bool:
        """Whether the cluster's head is this machine, as far as its address says."""
        from ray.util import get_node_ip_address

        return is_loopback(self.address) or urlsplit(self.address).hostname == get_node_ip_address()

    def submit(
        self,
        config: RunConfig,
        environment: Mapping[str, str],
        *,
        with_herd: bool = True,
        python: str | None = None,
        preflight: bool = True,
    ) -> Submitted:
        """Submits a portable job. Where the very same job runs already, its id comes back instead.

        Raises:
            ConfigError: another job on this cluster writes to the same output.
        """
        mark, output = digest(config), config.output.uri.rstrip("/")
        for job in self._listed():
            metadata = job.metadata or {}
            if metadata.get("herd.output") == output and not _state(job).is_over:
                if metadata.get("herd.job") != mark:
                    raise ConfigError(
                        f"Another job, {job.submission_id}, writes to this output",
                        where=output,
                        todo=f"Wait for it, or `herd stop {job.submission_id} --address {self.address}`.",
                    )
                return Submitted(str(job.submission_id), False)
        job_id = new_id(config.name, datetime.now(UTC))
        grace = {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(config.limits.drain_s) + STOP_SLACK_S)}
        with tempfile.TemporaryDirectory(prefix="herd-submit-") as folder:
            pack(config, Path(folder), with_herd=with_herd)
            self._send(
                job_id,
                entrypoint=entrypoint(python, preflight=preflight),
                runtime_env={"working_dir": folder, "env_vars": {**grace, **environment}},
                metadata={"herd.output": output, "herd.job": mark},
            )
        return Submitted(job_id, True)

    def _send(self, job_id: str, **what: Any) -> None:
        """Submits under an id of our own, so that a request whose reply got lost is not sent twice. Tries for some 15 s."""
        for n in range(TRIES):
            try:
                with _faults(self.address):
                    self._client.submit_job(submission_id=job_id, **what)
                return
            except (UnreachableError, RefusedError) as e:
                is_lasting = isinstance(e, RefusedError) and e.status < 500
                if is_lasting or n == TRIES - 1:
                    raise
                time.sleep(POLL_S * 2**n)
                with contextlib.suppress(HerdError):
                    if any(job.submission_id == job_id for job in self._listed()):
                        return

    def state(self, job_id: str) -> JobState:
        """How the job fares."""
        try:
            with _faults(self.address):
                return _state(self._client.get_job_info(job_id))
        except RefusedError as e:
            if e.status != 404:
                raise
            raise ConfigError(
                f"This cluster has no job {job_id}", where=self.address, todo="See `ray job list`."
            ) from None

    def logs(self, job_id: str) -> str:
        """All that the job has said so far."""
        self.state(job_id)
        with _faults(self.address):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, say: Callable[[str], None]) -> JobState:
        """Hands on what the job says, from its beginning, until it is over. Connections that end early are made anew."""
        seen, failures = 0, 0
        while True:
            seen = asyncio.run(self._tail(job_id, seen, say))
            try:
                state = self.state(job_id)
                if state.is_over:
                    if rest := self.logs(job_id)[seen:]:
                        say(rest)
                    return state
                failures = 0
            except (UnreachableError, RefusedError):
                failures += 1
                if failures >= PATIENCE:
                    raise
            time.sleep(POLL_S)

    async def _tail(self, job_id: str, seen: int, say: Callable[[str], None]) -> int:
        """Characters of the log that were handed on, `seen` among them, when the connection ended or fell silent."""
        at = 0
        lines = self._client.tail_job_logs(job_id)
        # whatever ends a connection, the job's own state says whether there is more
        with contextlib.suppress(Exception):
            while True:
                text = await asyncio.wait_for(anext(lines), SILENCE_S)
                new = text[max(0, seen - at) :]
                at += len(text)
                if new:
                    seen = at
                    say(new)
        await lines.aclose()
        return seen

    def stop(self, job_id: str) -> JobState:
        """Has the job told to end, and waits until it has: it commits what is in flight for `limits.drain_s` seconds."""
        state = self.state(job_id)
        if state.is_over:
            return state
        with _faults(self.address):
            self._client.stop_job(job_id)
        while not (state := self.state(job_id)).is_over:
            time.sleep(POLL_S)
        return state

    def _listed(self) -> list[Any]:
        with _faults(self.address):
            return [job for job in self._client.list_jobs() if job.submission_id]


def _client(address: str | None) -> Any:
    """Ray's client, with errors that keep their HTTP status."""
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)  # what is uploaded, and when connections close

    class Client(JobSubmissionClient):  # type: ignore[misc]
        def _raise_error(self, r: Any) -> None:
            lines = [line for line in str(r.text).splitlines() if line.strip()]
            refusal = RefusedError(f"The cluster's Jobs API refused: {lines[-1][:300] if lines else r.reason}")
            refusal.status = int(r.status_code)
            raise refusal

    return Client(address)


def _state(job: Any) -> JobState:
    def time_of(milliseconds: int | None) -> str | None:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat() if milliseconds else None

    return JobState(
        str(job.submission_id),
        str(job.status.value).lower(),
        (job.metadata or {}).get("herd.output"),
        job.driver_exit_code,
        time_of(job.start_time),
        time_of(job.end_time),
        (job.message or "").splitlines()[0] if job.message else None,
    )


@contextlib.contextmanager
def _faults(address: str) -> Iterator[None]:
    """What Ray's client raises, in Herd's words. It raises all kinds; those of connections are `OSError`s."""
    try:
        yield
    except HerdError:
        raise
    except Exception as e:
        from ray.exceptions import AuthenticationError

        said = str(e).splitlines()[0] if str(e) else type(e).__name__
        if isinstance(e, AuthenticationError):
            todo = (
                "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as `ray get-auth-token` tells there."
            )
            raise HerdError("The cluster asks for a token", where=address, todo=todo) from None
        if not isinstance(e, OSError):
            raise HerdError(f"The cluster's Jobs API refused: {said}", where=address) from None
        raise UnreachableError(
            f"The cluster's Jobs API does not answer: {said}",
            where=address,
            todo="Give the address of the head's dashboard, such as http://head:8265; it must run Ray with `ray[default]`.",
        ) from None


@contextlib.contextmanager
def _only_address(address: str | None) -> Iterator[None]:
    """Keeps Ray's client from preferring the environment's address to the one that was given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if address is not None else ()
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
