"""What goes wrong between here and a store: which faults pass, how long to try again, and what to tell the user.

Throttling, timeouts, resets, truncated bodies and wrong checksums pass; credentials that have expired are read anew, as
whoever rotates them needs a moment; a full disk, a missing bucket and a refusal do not pass.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from botocore.parsers import ResponseParserError

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
PASSING_ERRNOS = {
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT),
    *(errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.EREMOTEIO, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}

Made = TypeVar("Made")


class BodyMismatchError(Exception):
    """What arrived is not what was sent."""


PASSING_TYPES = (
    *(HTTPClientError, HttpError, TimeoutError, IncompleteReadError, ResponseStreamingError, ResponseParserError),
    *(FlexibleChecksumError, BodyMismatchError, ConnectionError),
)


def _chain(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__


def code_of(e: BaseException) -> str | None:
    """The S3 error code behind an exception, if there is one."""
    for cause in _chain(e):
        if isinstance(cause, ClientError):
            return str(cause.response.get("Error", {}).get("Code"))
    return None


def is_precondition(e: BaseException) -> bool:
    """Whether a conditional put was refused because another object stands there."""
    return isinstance(e, FileExistsError) or code_of(e) in ("PreconditionFailed", "412")


def passes(e: BaseException) -> bool:
    """Whether the same call may well succeed in a moment."""
    code = code_of(e)
    if code is not None:
        return code in THROTTLED | PASSING | EXPIRED
    if isinstance(e, PASSING_TYPES):
        return True
    return isinstance(e, OSError) and e.errno in PASSING_ERRNOS


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds to wait: exponential with full jitter, up to 20; from 1 s where the store asks for fewer requests."""
    e = state.outcome.exception() if state.outcome else None
    first = 1.0 if e is not None and code_of(e) in THROTTLED | EXPIRED else 0.2
    return float(tenacity.wait_random_exponential(multiplier=first, max=20)(state))


def retrying(act: Callable[[], Made], retry_s: float, renew: Callable[[], None]) -> Made:
    """What `act` gives, tried again for `retry_s` seconds while its fault `passes`. `renew` is called before the next try
    where credentials have expired."""

    def before(state: tenacity.RetryCallState) -> None:
        e = state.outcome.exception() if state.outcome else None
        if e is not None and code_of(e) in EXPIRED:
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
    except FileNotFoundError as e:
        no_bucket = "bucket does not exist" in str(e).lower() or "NoSuchBucket" in str(e)
        what = "The bucket does not exist" if no_bucket else "There is nothing at this address"
        raise StorageError(what, where=uri, todo="Check the spelling, the endpoint and the region.") from e
    except PermissionError as e:
        if code_of(e) in EXPIRED:
            raise StorageError(f"The credentials have expired: {_short(e)}", where=uri, todo=_RENEW) from e
        raise StorageError(f"The store refuses access: {_short(e)}", where=uri, todo=_permission_advice(uri)) from e
    except (NoCredentialsError, PartialCredentialsError) as e:
        raise StorageError(
            "No credentials were found for the store",
            where=uri,
            todo="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, choose AWS_PROFILE, or say "
            "`storage: {anonymous: true}` for a public bucket.",
        ) from e
    except (OSError, BotoCoreError, HttpError, BodyMismatchError) as e:
        if isinstance(e, OSError) and e.errno in FULL_ERRNOS:
            raise StorageError("The disk is full", where=uri, todo="Make room, then run again.") from e
        raise StorageError(
            f"The store failed: {_short(e)}", where=uri, todo="Check the endpoint and the network, then run again."
        ) from e


_RENEW = "Renew them where the store's usual chain finds them, then run again."


def _permission_advice(uri: str) -> str:
    if uri.startswith("s3://"):
        return "Check that the credentials are right and may read (inputs) or write (outputs) here."
    return "Check the permissions of the file and its folders."


def _short(e: BaseException) -> str:
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 200 else text[:200] + "..."
