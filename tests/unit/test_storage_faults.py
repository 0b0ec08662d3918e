"""What a store does when its requests fail on the way: which faults pass, for how long, and what the user reads."""

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.parsers import ResponseParserError
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error

from pipeline import lease
from pipeline.config import StorageConfig
from pipeline.errors import HerdError, InputChangedError, StorageError
from pipeline.output import Output, to_parquet
from pipeline.plan import Shard
from pipeline.source import read_shard
from pipeline.storage import BodyMismatchError, FileInfo, Store
from pipeline.storage_faults import is_precondition, passes, storage_errors
from tests import fault_proxy as faults
from tests.conftest import S3
from tests.fault_proxy import Act, FaultProxy, Forward, Got, Reply, proxied

_numbers = itertools.count()

one_server = pytest.mark.parametrize("s3", ["moto"], indirect=True)
"""For faults that are the proxy's alone, whichever server is behind it."""


@pytest.fixture(scope="module", autouse=True)
def impatience() -> Iterator[None]:
    """Nobody pauses long before the next try, and s3fs makes none, so that the tries counted here are the store's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.retryhandler.delay_exponential", lambda **kwargs: 0.0)
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        patch.setattr("pipeline.storage_faults._pause", lambda state: 0.02)
        yield


@lru_cache(maxsize=4)
def _client(endpoint_url: str) -> Any:
    return s3fs.S3FileSystem(endpoint_url=endpoint_url, use_listings_cache=False, skip_instance_cache=True)


@pytest.fixture(scope="module")
def running_proxy(s3: S3) -> Iterator[FaultProxy]:
    with proxied(s3.endpoint_url, seed=20) as proxy:
        yield proxy


@dataclass(frozen=True)
class Remote:
    """A folder of its own on an S3 server behind a proxy."""

    proxy: FaultProxy
    server: S3
    folder: str

    def uri(self, name: str) -> str:
        return f"s3://{self.folder}/{name}"

    def storage(self, **settings: Any) -> StorageConfig:
        return StorageConfig(endpoint_url=self.proxy.endpoint_url, **settings)

    def store(self, retry_s: float = 20, **settings: Any) -> Store:
        return Store(f"s3://{self.folder}", self.storage(**settings), retry_s=retry_s)

    def behind(self) -> Any:
        """The server itself, without the proxy."""
        return _client(self.server.endpoint_url)

    def put(self, name: str, data: bytes) -> None:
        self.behind().pipe_file(f"{self.folder}/{name}", data)

    def files(self) -> dict[str, bytes]:
        fs = self.behind()
        return {path.removeprefix(f"{self.folder}/"): fs.cat_file(path) for path in fs.find(self.folder)}


@pytest.fixture
def remote(running_proxy: FaultProxy, s3: S3) -> Iterator[Remote]:
    running_proxy.forget()
    yield Remote(running_proxy, s3, f"bucket/faults-{next(_numbers)}")
    running_proxy.forget()


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    return str(caught.value)


def client_error(code: str, message: str = "said so") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "GetObject")


def as_raised(e: BaseException) -> BaseException:
    """An S3 error as s3fs raises it."""
    return translate_boto_error(e)  # type: ignore[no-any-return]


# --- which faults pass


@pytest.mark.parametrize(
    "code",
    [
        *("SlowDown", "ServiceUnavailable", "503", "429", "ThrottlingException", "InternalError", "500", "502", "504"),
        *("RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody"),
        *("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"),
    ],
)
def test_s3_errors_that_pass(code: str) -> None:
    assert passes(client_error(code))
    assert passes(as_raised(client_error(code)))


@pytest.mark.parametrize(
    "code",
    [
        *("AccessDenied", "403", "NoSuchBucket", "NoSuchKey", "404", "PreconditionFailed", "412", "EntityTooLarge"),
        *("SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidBucketName", "MethodNotAllowed", "NotImplemented"),
    ],
)
def test_s3_errors_that_do_not_pass(code: str) -> None:
    assert not passes(client_error(code))
    assert not passes(as_raised(client_error(code)))


@pytest.mark.parametrize(
    "fault",
    [
        EndpointConnectionError(endpoint_url="http://localhost:9"),
        ConnectionClosedError(endpoint_url="http://localhost:9"),
        ConnectTimeoutError(endpoint_url="http://localhost:9"),
        ReadTimeoutError(endpoint_url="http://localhost:9"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ResponseParserError("no XML"),
        BodyMismatchError("1 of 2 bytes arrived"),
        FSTimeoutError(),
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_faults_of_the_way_pass(fault: Exception) -> None:
    assert passes(fault)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError("of no number"),
        PermissionError("Access Denied"),
        FileNotFoundError("a"),
        NoCredentialsError(),
        ValueError("a"),
        KeyboardInterrupt(),
    ],
    ids=lambda e: f"{type(e).__name__}-{getattr(e, 'errno', None)}",
)
def test_other_faults_do_not_pass(fault: BaseException) -> None:
    assert not passes(fault)


@pytest.mark.parametrize("code", ["PreconditionFailed", "412"])
def test_refused_condition_is_known_in_either_form(code: str) -> None:
    assert is_precondition(client_error(code))
    assert is_precondition(as_raised(client_error(code)))
    assert is_precondition(FileExistsError("a"))
    assert not is_precondition(as_raised(client_error("AccessDenied")))


# --- what the user reads


def said_of(fault: BaseException) -> str:
    def call() -> None:
        with storage_errors("s3://b/k"):
            raise fault

    return refused(call)


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"]
)
def test_credentials_that_have_expired_are_called_so_whatever_the_code(code: str) -> None:
    assert said_of(as_raised(client_error(code))).startswith("The credentials have expired: ")


@pytest.mark.parametrize("fault", [FSTimeoutError(), TimeoutError(), ReadTimeoutError(endpoint_url="http://e")])
def test_store_that_does_not_answer_in_time_is_said_to_be_slow_in_words(fault: Exception) -> None:
    message = said_of(fault)
    assert "Error" not in message
    assert "time" in message


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_called_so(number: int) -> None:
    assert said_of(OSError(number, os.strerror(number))) == "The disk is full (s3://b/k). Make room, then run again."


def test_store_that_throttles_is_said_to() -> None:
    assert "reduce your request rate" in said_of(
        as_raised(client_error("SlowDown", "Please reduce your request rate."))
    )


@pytest.mark.parametrize("fault", [client_error("InternalError"), ResponseParserError("no XML")], ids=repr)
def test_fault_that_the_client_did_not_translate_is_a_storage_error_too(fault: Exception) -> None:
    assert said_of(fault).startswith("The store failed: ")


def test_put_on_a_full_disk_is_not_tried_again_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def full(fd: int) -> None:
        tries.append(fd)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.storage.os.fsync", full)
    store = Store(str(tmp_path), StorageConfig(), retry_s=60)
    assert "The disk is full" in refused(lambda: store.put(str(tmp_path / "a"), b"abc"))
    assert len(tries) == 1
    assert os.listdir(tmp_path) == []


# --- faults that pass

PASSING: dict[str, tuple[Act, int]] = {  # with more takes than the client's own three tries, where it has any
    "throttled": (faults.SLOW_DOWN, 4),
    "failed": (faults.INTERNAL_ERROR, 4),
    "expired": (faults.EXPIRED_TOKEN, 2),
    "reset before": (faults.reset_before, 4),
    "reset after": (faults.reset_after, 4),
    "truncated": (faults.truncate, 2),
}
CALLS: dict[str, tuple[str, Callable[[Store, str], Any], Any]] = {
    "stat": ("HEAD", lambda store, uri: store.stat(uri).size, 5),
    "exists": ("HEAD", lambda store, uri: store.exists(uri), True),
    "find_one": ("HEAD", lambda store, uri: store.find_one(uri).size, 5),  # type: ignore[union-attr]
    "read": ("GET", lambda store, uri: store.read(uri), b"hello"),
    "open": ("GET", lambda store, uri: store.call(uri, lambda: store.open(uri).read()), b"hello"),
    "list_folder": ("GET", lambda store, uri: [f.size for f in store.list_folder(uri.rpartition("/")[0])], [5]),
    "find": ("GET", lambda store, uri: [f.size for f in store.find(uri.rpartition("/")[0])], [5]),
    "put": ("PUT", lambda store, uri: store.put(uri, b"other").size, 5),
    "remove": ("DELETE", lambda store, uri: store.remove(uri), None),
}


def assert_costs_nothing(remote: Remote, call: str, fault: str) -> None:
    method, act, expected = CALLS[call]
    remote.put("a.parquet", b"hello")
    rule = remote.proxy.add(PASSING[fault][0], method=method, times=PASSING[fault][1])
    assert act(remote.store(), remote.uri("a.parquet")) == expected
    assert rule.taken == PASSING[fault][1]
    assert remote.files() == {"remove": {}, "put": {"a.parquet": b"other"}}.get(call, {"a.parquet": b"hello"})


@one_server
@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *itertools.product(["read", "put", "stat"], ["throttled", "failed", "expired", "reset before"]),
        *itertools.product(["exists", "find_one", "list_folder", "find", "open", "remove"], ["expired", "failed"]),
    ],
)
def test_fault_that_passes_costs_nothing_but_time(remote: Remote, call: str, fault: str) -> None:
    assert_costs_nothing(remote, call, fault)


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        *itertools.product(["read", "open", "list_folder", "find"], ["truncated"]),
        *itertools.product(["put", "remove"], ["reset after"]),
    ],
)
def test_answer_that_is_lost_or_cut_costs_nothing_but_time(remote: Remote, call: str, fault: str) -> None:
    assert_costs_nothing(remote, call, fault)


def test_upload_that_is_cut_off_is_sent_again_whole(remote: Remote) -> None:
    data = os.urandom(10**6)
    rule = remote.proxy.drop_uploads(times=4)
    assert remote.store().put(remote.uri("a"), data).size == len(data)
    assert rule.taken == 4
    assert remote.files() == {"a": data}


def test_upload_of_which_nothing_ever_arrives_leaves_nothing(remote: Remote) -> None:
    remote.proxy.drop_uploads(times=None)
    assert "The store failed" in refused(lambda: remote.store(retry_s=0.2).put(remote.uri("a"), b"x" * 10**6))
    assert remote.files() == {}


@one_server
@pytest.mark.parametrize(("call", "method"), [("stat", "HEAD"), ("read", "GET"), ("put", "PUT"), ("open", "GET")])
def test_hang_that_is_longer_than_the_limit_is_given_up_and_tried_again(remote: Remote, call: str, method: str) -> None:
    remote.put("a.parquet", b"hello")
    _, act, expected = CALLS[call]
    remote.proxy.add(faults.hang(5), method=method)
    assert act(remote.store(timeout_s=0.6), remote.uri("a.parquet")) == expected
    (hung, *again) = [s for s in remote.proxy.seen(method) if "list-type" not in s.query]
    assert hung.status is None  # nobody waited for it
    assert again


# --- faults that last


@one_server
@pytest.mark.parametrize(
    ("act", "named"),
    [
        (faults.SLOW_DOWN, "Please reduce your request rate"),
        (faults.INTERNAL_ERROR, "We encountered an internal error"),
        (faults.EXPIRED_TOKEN, "The credentials have expired"),
        (faults.reset_before, "Connection was closed"),
        (faults.truncate, "The store failed"),
    ],
    ids=["throttled", "failed", "expired", "reset", "truncated"],
)
def test_fault_that_lasts_ends_with_its_cause(remote: Remote, act: Act, named: str) -> None:
    remote.put("a", b"hello")
    remote.proxy.add(act, method="GET", times=None)
    message = refused(lambda: remote.store(retry_s=0.5).read(remote.uri("a")))
    assert named in message and remote.uri("a") in message


@one_server
def test_hang_that_lasts_ends_with_its_cause(remote: Remote) -> None:
    remote.put("a", b"hello")
    remote.proxy.add(faults.hang(), method="GET", times=None)
    message = refused(lambda: remote.store(retry_s=0.5, timeout_s=0.5).read(remote.uri("a")))
    assert "time" in message and remote.uri("a") in message


@one_server
def test_credentials_that_stay_expired_are_named_though_the_answer_has_no_body(remote: Remote) -> None:
    """S3 answers HEAD with a bare 400 then."""
    remote.put("a", b"hello")
    remote.proxy.add(faults.EXPIRED_TOKEN, times=None)
    assert "expired" in refused(lambda: remote.store(retry_s=0.5).stat(remote.uri("a")))


@one_server
def test_listing_that_is_no_xml_ends_as_a_storage_error(remote: Remote) -> None:
    remote.put("a", b"hello")
    remote.proxy.add(faults.garble(3), query="list-type", times=None)
    refused(lambda: remote.store(retry_s=0.2).list_folder(f"s3://{remote.folder}"))


@one_server
@pytest.mark.parametrize(
    ("act", "named"), [(faults.ACCESS_DENIED, "refuses access"), (faults.NO_SUCH_BUCKET, "The bucket does not exist")]
)
@pytest.mark.parametrize(("call", "method"), [("read", "GET"), ("put", "PUT")])
def test_refusal_is_not_tried_again(remote: Remote, act: Act, named: str, call: str, method: str) -> None:
    remote.put("a", b"hello")
    remote.proxy.add(act, method=method, times=None)
    assert named in refused(lambda: CALLS[call][1](remote.store(retry_s=60), remote.uri("a")))
    assert len(remote.proxy.seen(method)) == 1


@one_server
def test_refusal_of_a_look_is_not_tried_again(remote: Remote) -> None:
    remote.proxy.add(faults.ACCESS_DENIED, times=None)
    assert "refuses access" in refused(lambda: remote.store(retry_s=60).stat(remote.uri("a")))
    assert len(remote.proxy.seen()) == 1


@one_server
def test_folder_that_cannot_be_listed_is_not_taken_for_empty(remote: Remote) -> None:
    remote.put("b/c", b"hello")
    remote.proxy.add(faults.ACCESS_DENIED, query="list-type", times=None)
    refused(lambda: remote.store(retry_s=0.2).first_below(f"s3://{remote.folder}"))


@one_server
def test_folder_whose_listing_fails_for_a_moment_is_looked_through(remote: Remote) -> None:
    remote.put("b/c", b"hello")
    remote.proxy.add(faults.INTERNAL_ERROR, query="list-type", times=4)
    assert remote.store().first_below(f"s3://{remote.folder}") == remote.uri("b/c")


# --- credentials


@pytest.mark.parametrize("call", ["put", "read", "list_folder"])
def test_credentials_that_were_renewed_are_found(remote: Remote, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    remote.put("a.parquet", b"hello")
    fresh = os.environ["AWS_ACCESS_KEY_ID"]
    used: list[str] = []

    async def act(proxy: FaultProxy, got: Got, forward: Forward) -> Reply:
        is_fresh = f"Credential={fresh}/" in got.headers["Authorization"]
        used.append("new" if is_fresh else "old")
        if is_fresh:
            return await forward()
        os.environ["AWS_ACCESS_KEY_ID"] = fresh  # whoever rotates them has just done so
        return await faults.EXPIRED_TOKEN(proxy, got, forward)

    remote.proxy.add(act, times=None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "herd-old-key")
    store = remote.store(timeout_s=100 + next(_numbers))  # a setting of its own, and so a client of its own
    assert CALLS[call][1](store, remote.uri("a.parquet")) == CALLS[call][2]
    assert set(used[: used.index("new")]) == {"old"} and set(used[used.index("new") :]) == {"new"}


# --- conditional puts


def test_put_if_where_nothing_stands_writes(remote: Remote) -> None:
    store, uri = remote.store(), remote.uri("a")
    info = store.put_if(uri, b"one", None)
    assert info == store.stat(uri)
    assert remote.files() == {"a": b"one"}


def test_put_if_where_another_stands_writes_nothing(remote: Remote) -> None:
    store, uri = remote.store(), remote.uri("a")
    first = store.put(uri, b"one")
    second = store.put(uri, b"two")
    remote.proxy.forget()
    assert store.put_if(uri, b"three", None) is None
    assert store.put_if(uri, b"three", first) is None
    assert remote.proxy.seen("PUT") == []
    assert store.put_if(uri, b"three", second) == store.stat(uri)
    assert remote.files() == {"a": b"three"}


def test_put_if_of_an_object_that_is_gone_writes_nothing(remote: Remote) -> None:
    store, uri = remote.store(), remote.uri("a")
    first = store.put(uri, b"one")
    store.remove(uri)
    assert store.put_if(uri, b"two", first) is None
    assert remote.files() == {}


def test_put_if_of_what_stands_already_counts_as_written(remote: Remote) -> None:
    store, uri = remote.store(), remote.uri("a")
    first = store.put(uri, b"one")
    assert store.put_if(uri, b"one", None) == first


@pytest.mark.parametrize("times", [1, 4])  # the client tries again itself; and the store does
@pytest.mark.parametrize("is_new", [True, False])
def test_put_if_whose_answer_is_lost_counts_as_written(remote: Remote, is_new: bool, times: int) -> None:
    store, uri = remote.store(), remote.uri("a")
    expected = None if is_new else store.put(uri, b"old")
    rule = remote.proxy.add(faults.reset_after, method="PUT", times=times)
    info = store.put_if(uri, b"one", expected)
    assert rule.taken >= 1
    assert info is not None and info == store.stat(uri)
    assert remote.files() == {"a": b"one"}


@pytest.mark.parametrize("is_new", [True, False])
def test_put_if_that_is_overtaken_after_its_look_is_decided_by_the_store(remote: Remote, is_new: bool) -> None:
    store, uri = remote.store(), remote.uri("a")
    expected = None if is_new else store.put(uri, b"old")
    fs = remote.behind()

    async def act(proxy: FaultProxy, got: Got, forward: Forward) -> Reply:
        writer = threading.Thread(target=fs.pipe_file, args=(f"{remote.folder}/a", b"another's"))
        writer.start()
        writer.join()
        return await forward()

    remote.proxy.add(act, method="PUT")
    info = store.put_if(uri, b"mine", expected)
    if remote.server.kind == "moto":
        assert info is None
        assert remote.files() == {"a": b"another's"}
    else:  # a store without conditions: the later one stands, and says so
        assert info == store.stat(uri)
        assert remote.files() == {"a": b"mine"}


@one_server
def test_put_if_that_overlaps_another_upload_is_tried_again(remote: Remote) -> None:
    rule = remote.proxy.add(faults.error(409, "ConditionalRequestConflict"), method="PUT", times=2)
    assert remote.store().put_if(remote.uri("a"), b"one", None) is not None
    assert rule.taken == 2


def test_store_is_found_out_about_conditions(remote: Remote) -> None:
    assert remote.store().refuses_to_create(remote.uri("probe")) is (remote.server.kind == "moto")
    assert remote.files() == {}


@pytest.mark.parametrize("fault", ["expired", "failed", "reset after"])
def test_store_is_found_out_about_conditions_through_faults(remote: Remote, fault: str) -> None:
    act, times = PASSING[fault]
    rule = remote.proxy.add(act, method="PUT", header="If-None-Match", times=times)
    assert remote.store().refuses_to_create(remote.uri("probe")) is (remote.server.kind == "moto")
    assert rule.taken
    assert remote.files() == {}


@one_server
def test_store_that_refuses_the_probe_is_a_storage_error(remote: Remote) -> None:
    remote.proxy.add(faults.ACCESS_DENIED, method="PUT", header="If-None-Match", times=None)
    assert "refuses access" in refused(lambda: remote.store(retry_s=0.2).refuses_to_create(remote.uri("probe")))


# --- uploads in parts

MIB = 2**20


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Has objects of 10 MiB and more sent in parts of 5; gives 12 MiB."""
    monkeypatch.setattr("pipeline.storage.PART_BYTES", 5 * MIB)
    return np.random.default_rng(0).bytes(12 * MIB)


def test_upload_in_parts_with_faults_that_pass_is_whole(remote: Remote, small_parts: bytes) -> None:
    failed = remote.proxy.add(faults.INTERNAL_ERROR, query="partNumber=2", times=4)
    lost = remote.proxy.add(faults.reset_after, query="partNumber=3", times=1)
    info = remote.store().put(remote.uri("a"), small_parts)
    assert (failed.taken, lost.taken) == (4, 1)
    assert info == remote.store().stat(remote.uri("a"))
    assert remote.files() == {"a": small_parts}


def test_upload_in_parts_that_fails_half_way_leaves_what_stood_there(remote: Remote, small_parts: bytes) -> None:
    remote.put("a", b"old")
    remote.proxy.add(faults.INTERNAL_ERROR, query="partNumber=2", times=None)
    assert "internal error" in refused(lambda: remote.store(retry_s=0.1).put(remote.uri("a"), small_parts))
    assert remote.files() == {"a": b"old"}
    assert remote.proxy.seen("DELETE", query="uploadId")  # and no parts that cost storage


def test_upload_in_parts_whose_last_answer_is_lost_counts_as_written(remote: Remote, small_parts: bytes) -> None:
    """The client asks again for what is done already, and is told that there is no such upload."""
    rule = remote.proxy.add(faults.reset_after, method="POST", query="uploadId", times=1)
    assert remote.store().put(remote.uri("a"), small_parts).size == len(small_parts)
    assert rule.taken == 1
    assert remote.files() == {"a": small_parts}


def test_put_if_in_parts_whose_last_answer_is_lost_counts_as_written(remote: Remote, small_parts: bytes) -> None:
    remote.proxy.add(faults.reset_after, method="POST", query="uploadId", times=1)
    info = remote.store().put_if(remote.uri("a"), small_parts, None)
    assert info == remote.store().stat(remote.uri("a"))
    assert remote.files() == {"a": small_parts}


def test_put_if_in_parts_of_what_appeared_meanwhile_gives_way(remote: Remote, small_parts: bytes) -> None:
    store, fs = remote.store(), remote.behind()
    assert store.put_if(remote.uri("b"), small_parts, None) == store.stat(remote.uri("b"))

    async def act(proxy: FaultProxy, got: Got, forward: Forward) -> Reply:
        writer = threading.Thread(target=fs.pipe_file, args=(f"{remote.folder}/a", b"another's"))
        writer.start()
        writer.join()
        return await forward()

    remote.proxy.add(act, method="POST", query="uploadId")
    info = store.put_if(remote.uri("a"), small_parts, None)
    if remote.server.kind == "moto":
        assert info is None
        assert remote.files()["a"] == b"another's"
    else:
        assert info == store.stat(remote.uri("a"))


# --- Parquet on its way

ROWS = 20_000


def parquet(*, compression: str = "none", has_checksums: bool = True) -> bytes:
    """One row group of numbers and texts; uncompressed, so that a wrong byte of a page decodes to a wrong value."""
    sink = pa.BufferOutputStream()
    table = pa.table({"n": range(ROWS), "text": [f"row {i}" for i in range(ROWS)]})
    pq.write_table(table, sink, compression=compression, use_dictionary=False, write_page_checksum=has_checksums)
    return bytes(sink.getvalue())


def shard_of(info: FileInfo) -> Shard:
    return Shard(0, info.uri, info.etag, info.size, 0, 0, ROWS, 1)


SCHEMA = pa.schema([("n", pa.int64()), ("text", pa.string())])


def assert_right(table: pa.Table) -> None:
    assert table["n"].to_pylist() == list(range(ROWS))
    assert table["text"].to_pylist() == [f"row {i}" for i in range(ROWS)]


@pytest.mark.parametrize("act", [faults.truncate, faults.garble(50), faults.SLOW_DOWN], ids=["cut", "garbled", "slow"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_shard_whose_bytes_are_spoilt_on_the_way_is_read_again(remote: Remote, act: Act, compression: str) -> None:
    remote.put("a.parquet", parquet(compression=compression))
    info = remote.store().stat(remote.uri("a.parquet"))
    rule = remote.proxy.add(act, method="GET", times=2)
    assert_right(read_shard(shard_of(info), SCHEMA, remote.storage(retry_s=20)))
    assert rule.taken == 2


@one_server
@pytest.mark.parametrize("part", [0.02, 0.2, 0.5, 0.8])  # the footer and what is read with it lie behind
def test_shard_of_which_one_byte_is_wrong_is_read_again(remote: Remote, part: float) -> None:
    """The file has page checksums, as those that a run writes have."""
    data = parquet()
    remote.put("a.parquet", data)
    info = remote.store().stat(remote.uri("a.parquet"))
    act = faults.Flip(int(part * len(data)))
    remote.proxy.add(act, method="GET", times=None)
    assert_right(read_shard(shard_of(info), SCHEMA, remote.storage(retry_s=20)))
    assert act.hits == 1


@one_server
def test_table_of_a_run_of_which_one_byte_is_wrong_is_read_again(remote: Remote) -> None:
    """So that a replay merges no wrong value, and that a proof does not fail over a fault of the way."""
    data = to_parquet(pa.table({"n": np.random.default_rng(0).integers(0, 2**62, 20_000)}), {})
    remote.put("a.parquet", data)
    output = Output(f"s3://{remote.folder}", remote.store())
    expected = output.read_table("a.parquet")
    act = faults.Flip(len(data) // 2)
    remote.proxy.add(act, method="GET", times=None)
    assert output.read_table("a.parquet") == expected
    assert act.hits == 1


@one_server
def test_shard_that_is_spoilt_in_the_store_says_so(remote: Remote) -> None:
    data = bytearray(parquet())
    data[len(data) // 2] ^= 1
    remote.put("a.parquet", bytes(data))
    info = remote.store().stat(remote.uri("a.parquet"))
    with pytest.raises(InputChangedError, match="Row group 0 cannot be read"):
        read_shard(shard_of(info), SCHEMA, remote.storage(retry_s=0.2))


@one_server
@pytest.mark.parametrize(
    ("act", "named"),
    [(faults.ACCESS_DENIED, "refuses access"), (faults.EXPIRED_TOKEN, "credentials have expired")],
    ids=["refused", "expired"],
)
def test_shard_that_may_not_be_read_is_no_changed_file(remote: Remote, act: Act, named: str) -> None:
    remote.put("a.parquet", parquet())
    info = remote.store().stat(remote.uri("a.parquet"))
    remote.proxy.add(act, method="GET", times=None)
    message = refused(lambda: read_shard(shard_of(info), SCHEMA, remote.storage(retry_s=0.2)))
    assert named in message


# --- the lease


@one_server
def test_lease_that_cannot_be_read_is_not_lost(remote: Remote) -> None:
    store = remote.store(retry_s=0.2)
    held = lease.Lease(f"s3://{remote.folder}", store, 60)
    try:
        lease.check(store, f"s3://{remote.folder}", held.token)
        remote.proxy.add(faults.INTERNAL_ERROR, method="GET", times=None)
        with pytest.raises(StorageError, match="internal error"):
            lease.check(store, f"s3://{remote.folder}", held.token)
    finally:
        remote.proxy.heal()
        held.release()
    assert remote.files() == {}


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)  # what another thread sends is seen at the server only


@pytest.mark.parametrize("act", [faults.reset_after, faults.INTERNAL_ERROR], ids=["lost", "failed"])
def test_lease_whose_renewals_have_faults_is_kept(remote: Remote, act: Act) -> None:
    """Some with tries enough to pass, others without."""
    store = remote.store(retry_s=0.3)
    held = lease.Lease(f"s3://{remote.folder}", store, 0.3)
    try:
        remote.proxy.forget()
        rule = remote.proxy.add(act, method="PUT", key="_lease", times=7)
        until(lambda: rule.taken == 7)
        healed = len(remote.proxy.seen("PUT"))
        until(lambda: len(remote.proxy.seen("PUT")) >= healed + 2)
        assert not held.is_lost.is_set()
        lease.check(store, f"s3://{remote.folder}", held.token)
    finally:
        held.release()
    assert remote.files() == {}


@one_server
def test_lease_that_is_released_while_the_store_is_down_does_not_hide_what_went_wrong(remote: Remote) -> None:
    def act(held: lease.Lease) -> None:
        remote.proxy.add(faults.ACCESS_DENIED, times=None)
        raise HerdError("what went wrong")

    with pytest.raises(HerdError, match="what went wrong"):
        lease.held(f"s3://{remote.folder}", remote.store(retry_s=0.1), 60, act)
