import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.config import ImageConfig, StorageConfig
from pipeline.errors import RowError, Stage
from pipeline.render.fetch import Fetcher, PrivateAddressError, check_public
from pipeline.storage import Store

from .helpers import row_error

BODY = b"an image, as far as the fetcher knows"


class Server:
    """A server on the loopback address. `answers` maps paths to (status, headers, body); `requests` lists what came."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {"/a.png": (200, {}, BODY)}
        self.requests: list[str] = []
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                path = urlsplit(self.path).path
                if path == "/slow":
                    outer.release.wait(30)
                    return
                status, headers, body = outer.answers.get(path, (404, {}, b"none"))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                if path == "/stalls":
                    self.wfile.flush()
                    outer.release.wait(30)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server()
    yield it
    it.close()


def fetcher(**limits: Any) -> Fetcher:
    return Fetcher(ImageConfig(**{"allow_private_addresses": True, **limits}), StorageConfig())


def failed(uri: str, **limits: Any) -> RowError:
    error = row_error(lambda: fetcher(**limits).fetch(uri))
    assert error.stage == Stage.IMAGE
    return error


def test_fetch_private_address_refused_and_nothing_is_sent(server: Server) -> None:
    error = failed(f"{server.url}/a.png", allow_private_addresses=False)
    assert error.error_type == "address_not_allowed"
    assert error.message == f"{server.url}/a.png leads to 127.0.0.1, which is not a public address"
    assert server.requests == []


def test_fetch_name_of_a_private_address_refused_and_nothing_is_sent(server: Server) -> None:
    error = failed(server.url.replace("127.0.0.1", "localhost") + "/a.png", allow_private_addresses=False)
    assert error.error_type == "address_not_allowed"
    assert server.requests == []


def test_fetch_private_https_address_refused(server: Server) -> None:
    error = failed(server.url.replace("http:", "https:") + "/a.png", allow_private_addresses=False)
    assert error.error_type == "address_not_allowed"
    assert server.requests == []


def test_fetch_private_address_is_allowed_by_the_job(server: Server) -> None:
    assert fetcher().fetch(f"{server.url}/a.png") == BODY
    assert server.requests == ["/a.png"]


def test_fetch_public_check_does_not_leak_into_other_fetchers(server: Server) -> None:
    fetcher(allow_private_addresses=False)
    assert fetcher().fetch(f"{server.url}/a.png") == BODY


def test_fetch_proxy_of_the_environment_is_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetcher().fetch(f"{server.url}/a.png") == BODY


def chain(server: Server, hops: int, status: int = 302) -> str:
    for n in range(hops):
        location = "/a.png" if n == hops - 1 else f"/hop{n + 1}"
        server.answers[f"/hop{n}"] = (status, {"Location": location}, b"")
    return f"{server.url}/hop0"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_fetch_redirect_is_followed(server: Server, status: int) -> None:
    assert fetcher().fetch(chain(server, 1, status)) == BODY


def test_fetch_redirects_up_to_the_limit_are_followed(server: Server) -> None:
    assert fetcher(max_redirects=3).fetch(chain(server, 3)) == BODY


def test_fetch_redirects_beyond_the_limit_are_not_followed(server: Server) -> None:
    error = failed(chain(server, 4), max_redirects=3)
    assert error.error_type == "image_unreachable"
    assert error.message == f"{server.url}/hop0: more than 3 redirects"
    assert server.requests == ["/hop0", "/hop1", "/hop2", "/hop3"]


def test_fetch_redirect_with_limit_zero_is_not_followed(server: Server) -> None:
    assert failed(chain(server, 1), max_redirects=0).error_type == "image_unreachable"
    assert server.requests == ["/hop0"]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://example.com/a", "s3://bucket/a.png", "FILE:///etc/passwd"]
)
def test_fetch_redirect_away_from_http_refused(server: Server, target: str) -> None:
    server.answers["/r"] = (302, {"Location": target}, b"")
    error = failed(f"{server.url}/r", allow_local_files=True)
    assert (error.error_type, error.message) == ("scheme_not_allowed", f"{server.url}/r redirects away from http(s)")


@pytest.mark.parametrize("target", ["http://[", "http://", ""])
def test_fetch_redirect_to_nowhere_fails_the_row(server: Server, target: str) -> None:
    server.answers["/r"] = (302, {"Location": target}, b"")
    assert failed(f"{server.url}/r").error_type == "image_unreachable"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, "image_missing"),
        (410, "image_missing"),
        (403, "image_forbidden"),
        (401, "image_forbidden"),
        (500, "image_unreachable"),
        (204, "image_unreachable"),
    ],
)
def test_fetch_status_names_the_error(server: Server, status: int, kind: str) -> None:
    server.answers["/a.png"] = (status, {}, b"")
    error = failed(f"{server.url}/a.png")
    assert (error.error_type, error.message) == (kind, f"{server.url}/a.png: HTTP {status}")


def test_fetch_nobody_listening_fails_the_row(server: Server) -> None:
    server.close()
    error = failed(f"{server.url}/a.png")
    assert error.error_type == "image_unreachable"
    assert error.message.startswith(f"{server.url}/a.png: ")


def test_fetch_body_of_just_max_bytes_accepted(server: Server) -> None:
    assert fetcher(max_bytes=len(BODY)).fetch(f"{server.url}/a.png") == BODY


def test_fetch_body_over_max_bytes_refused(server: Server) -> None:
    error = failed(f"{server.url}/a.png", max_bytes=len(BODY) - 1)
    assert error.error_type == "image_too_large"
    assert error.message == f"{server.url}/a.png: more than {len(BODY) - 1} bytes"


def test_fetch_body_that_inflates_over_max_bytes_refused(server: Server) -> None:
    packed = gzip.compress(b"\0" * 10**6)
    server.answers["/a.png"] = (200, {"Content-Encoding": "gzip"}, packed)
    assert len(packed) < 5000
    assert failed(f"{server.url}/a.png", max_bytes=5000).error_type == "image_too_large"


def test_fetch_body_cut_short_fails_the_row(server: Server) -> None:
    server.answers["/a.png"] = (200, {"Content-Length": "1000", "Connection": "close"}, BODY)
    error = failed(f"{server.url}/a.png")
    assert error.error_type == "image_unreachable"


def test_fetch_slow_server_fails_the_row(server: Server) -> None:
    error = failed(f"{server.url}/slow", timeout_s=0.3)
    assert error.error_type == "image_timeout"
    assert error.message == f"{server.url}/slow took longer than 0.3 s"


def test_fetch_slow_server_is_not_asked_again(server: Server) -> None:
    """The time is for one fetch in all: when it has passed there is none left to ask again."""
    failed(f"{server.url}/slow", timeout_s=0.3)
    assert server.requests == ["/slow"]


def test_fetch_body_that_stalls_fails_the_row(server: Server) -> None:
    server.answers["/stalls"] = (200, {"Content-Length": "1000"}, BODY)
    assert failed(f"{server.url}/stalls", timeout_s=0.3).error_type == "image_timeout"


@pytest.mark.parametrize(
    ("path", "limits"),
    [
        ("/none.png", {}),
        ("/a.png", {"max_bytes": 1}),
        ("/a.png", {"allow_private_addresses": False}),
        ("/slow", {"timeout_s": 0.3}),
        ("/hop0", {"max_redirects": 0}),
        ("/file", {}),
        ("/cut", {}),
        ("/nowhere", {}),
    ],
)
def test_fetch_messages_never_hold_queries_or_passwords(server: Server, path: str, limits: dict[str, Any]) -> None:
    chain(server, 1)
    server.answers["/file"] = (302, {"Location": "file:///x?X-Amz-Signature=hunter2"}, b"")
    server.answers["/nowhere"] = (302, {"Location": "http://127.0.0.1:1/x?X-Amz-Signature=hunter2"}, b"")
    server.answers["/cut"] = (200, {"Content-Length": "1000", "Connection": "close"}, BODY)
    uri = server.url.replace("http://", "http://me:hunter2@") + path + "?X-Amz-Signature=hunter2&n=1#hunter2"
    message = failed(uri, **limits).message
    assert "hunter2" not in message
    assert path in message


def test_fetch_s3_message_never_holds_the_query(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Store, name: str, path: str) -> None:
        raise OSError(f"no way to {path}")

    monkeypatch.setattr(Store, "_do", broken)
    error = failed("s3://bucket/a.png?X-Amz-Signature=hunter2")
    assert (error.error_type, error.message) == ("image_unreachable", "s3://bucket/a.png: OSError")


@pytest.mark.parametrize("form", ["{path}", "file://{path}"])
def test_fetch_local_file_refused_unless_the_job_allows(tmp_path: Path, form: str) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(BODY)
    uri = form.format(path=file)
    error = failed(uri)
    assert error.error_type == "address_not_allowed"
    assert "is a local file; `render: {images: {allow_local_files: true}}` would allow it" in error.message
    assert fetcher(allow_local_files=True).fetch(uri) == BODY


def test_fetch_local_file_missing_fails_the_row(tmp_path: Path) -> None:
    error = failed(str(tmp_path / "none.png"), allow_local_files=True)
    assert (error.error_type, error.message) == ("image_missing", f"nothing is at {tmp_path / 'none.png'}")


def test_fetch_local_file_too_large_fails_the_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(BODY)
    error = failed(str(tmp_path / "a.png"), allow_local_files=True, max_bytes=5)
    assert error.error_type == "image_too_large"
    assert f"{len(BODY)} bytes, over the limit of 5" in error.message


def test_fetch_local_file_that_may_not_be_read_fails_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.info", refuse)
    error = failed(str(tmp_path / "a.png"), allow_local_files=True)
    assert (error.error_type, error.message) == ("image_forbidden", f"{tmp_path / 'a.png'} may not be read")


@pytest.mark.parametrize("uri", ["ftp://example.com/a", "javascript:alert(1)", "gopher://x/", "simplecache::s3://b/a"])
def test_fetch_other_scheme_refused(uri: str) -> None:
    error = failed(uri, allow_local_files=True)
    assert error.error_type == "scheme_not_allowed"
    assert "is not fetched" in error.message


@pytest.mark.parametrize("uri", ["http://[bad", "http://", "http://a:port/", "http://[::1]]/", "http:///a", "/a\0b"])
def test_fetch_uri_that_makes_no_sense_fails_the_row(uri: str) -> None:
    assert failed(uri, allow_local_files=True).stage == Stage.IMAGE


def test_fetch_message_can_always_be_written() -> None:
    """A lone surrogate can come out of JSON, and must not reach the quarantine file, which cannot hold it."""
    failed("\ud800.png").message.encode()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "ff0e::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:224.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
    ],
)
def test_check_public_private_address_refused(address: str) -> None:
    with pytest.raises(PrivateAddressError) as caught:
        check_public(address)
    assert str(caught.value) == address


@pytest.mark.parametrize("address", ["8.8.8.8", "2001:4860:4860::8888", "::ffff:8.8.8.8", "1.1.1.1"])
def test_check_public_public_address_passes(address: str) -> None:
    check_public(address)
