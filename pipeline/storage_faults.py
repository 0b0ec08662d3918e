"""What goes wrong between here and a store: which faults pass, how long to try again, and what to tell the user.

Throttling, timeouts, resets, truncated bodies and wrong checksums pass; credentials that have expired are read anew, as
whoever rotates them needs a moment; a full disk, a missing bucket and a refusal do not pass.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import tenacity

from pipeline.errors import StorageError

THROTTLED = {
    "SlowDown",
    "ServiceUnavailable",
    "503",
    "429",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
}
PASSING = {
    *("InternalError", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "500", "502", "504"),
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"}
NAMELESS = {"400"}
"""What a HEAD request gets for expired credentials: its answer has no body to say so."""
PASSING_ERRNOS = {
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EREMOTEIO, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}

Made = TypeVar("Made")


class BodyMismatchError(Exception):
    """What arrived is not what was sent."""


@dataclass(frozen=True)
class _Kinds:
    """Exceptions of the libraries below, by what they mean here."""

    reply: type[Any]
    passing: tuple[type[Exception], ...]
    credentials: tuple[type[Exception], ...]
    other: tuple[type[Exception], ...]


@cache
def _kinds() -> _Kinds:
    """Looked up at the first fault: the libraries take most of a second to import, and local files need none of them."""
    import aiohttp
    from botocore import exceptions, parsers

    passing = (
        *(exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError),
        exceptions.ResponseStreamingError,
        *(exceptions.FlexibleChecksumError, parsers.ResponseParserError, aiohttp.ClientError),
        *(TimeoutError, ConnectionError, BodyMismatchError),
    )
    credentials = (exceptions.NoCredentialsError, exceptions.PartialCredentialsError)
    other = (OSError, exceptions.BotoCoreError, exceptions.ClientError, *passing)
    return _Kinds(exceptions.ClientError, passing, credentials, other)


def _chain(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__


def code_of(e: BaseException) -> str | None:
    """The S3 error code behind an exception, if there is one."""
    for cause in _chain(e):
        if isinstance(cause, _kinds().reply):
            return str(cause.response.get("Error", {}).get("Code"))
    return None


def is_precondition(e: BaseException) -> bool:
    """Whether a conditional put was refused because another object stands there."""
    return isinstance(e, FileExistsError) or code_of(e) in ("PreconditionFailed", "412")


def is_lost_upload(e: BaseException) -> bool:
    """Whether an upload in parts is unknown to the store: it was completed by a request whose answer got lost, or ended."""
    return code_of(e) == "NoSuchUpload"


def passes(e: BaseException) -> bool:
    """Whether the same call may well succeed in a moment."""
    code = code_of(e)
    if code is not None:
        return code in THROTTLED | PASSING | EXPIRED | NAMELESS
    if isinstance(e, _kinds().passing):
        return True
    return isinstance(e, OSError) and e.errno in PASSING_ERRNOS


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds to wait: exponential with full jitter, up to 20; from 1 s where the store asks for fewer requests."""
    e = state.outcome.exception() if state.outcome else None
    first = 1.0 if e is not None and code_of(e) in THROTTLED | EXPIRED | NAMELESS else 0.2
    return float(tenacity.wait_random_exponential(multiplier=first, max=20)(state))


def retrying(act: Callable[[], Made], retry_s: float, renew: Callable[[], None]) -> Made:
    """What `act` gives, tried again for `retry_s` seconds while its fault `passes`. `renew` is called before the next try
    where credentials have expired."""

    def before(state: tenacity.RetryCallState) -> None:
        e = state.outcome.exception() if state.outcome else None
        if e is not None and code_of(e) in EXPIRED | NAMELESS:
            renew()

    retryer = tenacity.Retrying(
        retry=tenacity.retry_if_exception(passes),
        stop=tenacity.stop_before_delay(retry_s),
        wait=_pause,
        before_sleep=before,
        reraise=True,
    )
    return retryer(act)


@contextlib.contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Raises `StorageError` with the URI and a way out for whatever the filesystem raises inside."""
    try:
        yield
    except StorageError:
        raise
    except _kinds().credentials as e:
        raise StorageError(
            "No credentials were found for the store",
            where=uri,
            todo="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose AWS_PROFILE, or say "
            "`storage: {anonymous: true}` for a public bucket.",
        ) from e
    except _kinds().other as e:
        what, todo = _sentence(e, uri)
        raise StorageError(what, where=uri, todo=todo) from e


def _sentence(e: Exception, uri: str) -> tuple[str, str]:
    """What went wrong, and what to do."""
    code = code_of(e)
    if code in EXPIRED:
        return f"The credentials have expired: {_short(e)}", _RENEW
    if code in NAMELESS:
        return (
            f"The store refuses the request and says no more, as it does when credentials have expired: {_short(e)}",
            _RENEW,
        )
    if isinstance(e, FileNotFoundError):
        no_bucket = "bucket does not exist" in str(e).lower() or "NoSuchBucket" in str(e)
        what = "The bucket does not exist" if no_bucket else "There is nothing at this address"
        return what, "Check the spelling, the endpoint and the region."
    if isinstance(e, PermissionError):
        return f"The store refuses access: {_short(e)}", _permission_advice(uri)
    if isinstance(e, OSError) and e.errno in FULL_ERRNOS:
        return "The disk is full", "Make room, then run again."
    if code in THROTTLED:
        return f"The store asks for fewer requests: {_short(e)}", "Wait, lower pool.max, or spread the prefix."
    if isinstance(e, TimeoutError):
        said = f": {e}" if str(e) else ""
        return f"The store did not answer in time{said}", _LOOK
    return f"The store failed: {_short(e)}", _LOOK


_LOOK = "Check the endpoint and the network, then run again."
_RENEW = "Renew them where the store's usual chain finds them, then run again."


def _permission_advice(uri: str) -> str:
    if uri.startswith("s3://"):
        return "Check that the credentials are right and may read (inputs) or write (outputs) here."
    return "Check the permissions of the file and its folders."


def _short(e: BaseException) -> str:
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 200 else text[:200] + "..."
