"""A reverse proxy before an S3 server that does to chosen requests what networks and stores do.

Rules are tried in the order in which they were added; the first that takes a request decides what becomes of it. Requests
that no rule takes pass as they are. The `Host` header passes too, since signatures cover it.
"""

import asyncio
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import aiohttp
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect", "content-length"}


@dataclass(frozen=True)
class Got:
    """A request with its whole body, as the client sent it."""

    method: str
    key: str
    """Bucket and key."""
    query: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and "list-type=" in self.query


@dataclass
class Reply:
    """What the client is sent. With `cut_at`, the connection breaks after as many bytes of the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut_at: int | None = None


class ConnectionBroken(Exception):  # noqa: N818 - it is the client that has an error
    """The client is to see its connection reset."""


Forward = Callable[[], Awaitable[Reply]]
Act = Callable[["FaultProxy", Got, Forward], Awaitable[Reply]]


def error(status: int, code: str, message: str = "") -> Act:
    """An answer of the proxy's own; the server hears nothing. As on S3, the answer to HEAD has no body."""
    text = message or f"made up: {code}"
    xml = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{text}</Message></Error>'

    async def act(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
        return Reply(status, {"Content-Type": "application/xml"}, xml.encode())

    return act


SLOW_DOWN = error(503, "SlowDown", "Please reduce your request rate.")
INTERNAL_ERROR = error(500, "InternalError", "We encountered an internal error. Please try again.")
EXPIRED_TOKEN = error(400, "ExpiredToken", "The provided token has expired.")
ACCESS_DENIED = error(403, "AccessDenied", "Access Denied")
NO_SUCH_BUCKET = error(404, "NoSuchBucket", "The specified bucket does not exist")


async def reset_before(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
    """The connection breaks before the server has heard of the request."""
    raise ConnectionBroken


async def reset_after(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
    """The server does what it was asked, and its answer is lost."""
    await forward()
    raise ConnectionBroken


async def truncate(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
    """The connection breaks in the middle of the answer's body."""
    reply = await forward()
    reply.cut_at = len(reply.body) // 2
    return reply


def garble(every: int = 7) -> Act:
    """Some bytes of the answer's body are others, at one of `every` places on the average."""

    async def act(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
        reply = await forward()
        if reply.status < 300 and reply.body:
            body = bytearray(reply.body)
            for at in {0, *proxy.random.sample(range(len(body)), len(body) // every)}:
                body[at] ^= proxy.random.randrange(1, 256)
            reply.body = bytes(body)
        return reply

    return act


class Flip:
    """An act under which the byte at one place of the object is another one, in the first `times` answers that hold it."""

    def __init__(self, at: int, times: int = 1) -> None:
        self._at, self._times, self.hits = at, times, 0

    async def __call__(self, proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
        reply = await forward()
        asked = re.match(r"bytes=(\d+)-", got.headers.get("Range", ""))
        index = self._at - (int(asked[1]) if asked else 0)
        if reply.status < 300 and 0 <= index < len(reply.body) and self.hits < self._times:
            self.hits += 1
            reply.body = reply.body[:index] + bytes([reply.body[index] ^ 1]) + reply.body[index + 1 :]
        return reply


def hang(seconds: float = 3600) -> Act:
    """Nothing is heard for so long, or until the proxy is healed; then the request goes on its way."""

    async def act(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
        with suppress(TimeoutError):
            await asyncio.wait_for(proxy.healed.wait(), seconds)
        return await forward()

    return act


def stale_list(seconds: float) -> Act:
    """A listing leaves out what was put through the proxy in the last seconds."""

    async def act(proxy: "FaultProxy", got: Got, forward: Forward) -> Reply:
        reply = await forward()
        now = time.monotonic()
        new = {key for key, at in proxy.puts.items() if now - at < seconds}
        bucket = got.key.split("/", 1)[0]

        def kept(entry: re.Match[bytes]) -> bytes:
            key = re.search(rb"<Key>(.*?)</Key>", entry[0])
            name = urllib.parse.unquote_plus(key[1].decode()) if key else ""
            return b"" if f"{bucket}/{name}" in new else entry[0]

        reply.body = re.sub(rb"<Contents>.*?</Contents>", kept, reply.body, flags=re.DOTALL)
        count = reply.body.count(b"<Contents>") + reply.body.count(b"<CommonPrefixes>")
        reply.body = re.sub(rb"<KeyCount>\d+</KeyCount>", b"<KeyCount>%d</KeyCount>" % count, reply.body)
        return reply

    return act


@dataclass
class Rule:
    """Takes requests by method (a regex that matches as a whole), by bucket and key (a regex that is found in them), by
    query and by the name of a header. Of those the first `skip` pass, then `times` (None: all) are taken, each with a
    probability of `rate`. `drops` takes the request before its body has arrived, and breaks the connection."""

    act: Act
    method: str = ".*"
    key: str = ""
    query: str = ""
    header: str = ""
    skip: int = 0
    times: int | None = 1
    rate: float = 1.0
    drops: bool = False
    taken: int = 0

    def takes(self, method: str, key: str, query: str, headers: dict[str, str], chance: random.Random) -> bool:
        if not (re.fullmatch(self.method, method) and re.search(self.key, key) and re.search(self.query, query)):
            return False
        if self.header and self.header.lower() not in {h.lower() for h in headers}:
            return False
        if self.times is not None and self.taken >= self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if chance.random() >= self.rate:
            return False
        self.taken += 1
        return True


@dataclass(frozen=True)
class Seen:
    """A request that has come, and the status that the client got; None where it got no answer, or none yet."""

    method: str
    key: str
    query: str
    has_fault: bool
    status: int | None = None


class FaultProxy:
    """See the module. Runs in a thread of its own; rules may be changed at any time."""

    def __init__(self, server_url: str, seed: int = 0) -> None:
        self._server_url, self._rules, self._lock = server_url, list[Rule](), threading.Lock()
        self._seen: list[Seen] = []
        self.random = random.Random(seed)
        self.puts: dict[str, float] = {}
        """When each object was put last, by bucket and key, on the monotonic clock."""
        self.healed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._ready, self._stopped = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def add(self, act: Act, **choice: object) -> Rule:
        """A new rule, see `Rule` for what chooses requests."""
        rule = Rule(act, **choice)  # type: ignore[arg-type]
        with self._lock:
            self._rules.append(rule)
        return rule

    def drop_uploads(self, **choice: object) -> Rule:
        """A new rule under which PUT requests lose their connection while the body is on its way."""
        return self.add(reset_before, method="PUT", drops=True, **choice)

    def heal(self) -> None:
        """Takes all rules away and lets go what hangs."""
        with self._lock:
            self._rules.clear()

        async def let_go() -> None:
            self.healed.set()
            self.healed = asyncio.Event()

        asyncio.run_coroutine_threadsafe(let_go(), self._loop).result(10)

    def forget(self) -> None:
        """Heals, and begins the record anew."""
        self.heal()
        with self._lock:
            self._seen.clear()

    def seen(self, method: str = ".*", key: str = "", query: str = "") -> list[Seen]:
        """Requests that came since the record was begun, chosen as a rule chooses."""
        with self._lock:
            return [
                s
                for s in self._seen
                if re.fullmatch(method, s.method) and re.search(key, s.key) and re.search(query, s.query)
            ]

    def stop(self) -> None:
        self.heal()
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            application = web.Application(client_max_size=2**30)
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.endpoint_url = "http://{}:{}".format(*runner.addresses[0][:2])
            self._ready.set()
            await self._stopped.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        key = urllib.parse.unquote(request.path_qs.partition("?")[0]).lstrip("/")
        headers = dict(request.headers)
        with self._lock:
            chosen = (
                r for r in self._rules if r.takes(request.method, key, request.query_string, headers, self.random)
            )
            rule = next(chosen, None)
            index = len(self._seen)
            self._seen.append(Seen(request.method, key, request.query_string, rule is not None))
            seen = self._seen
        try:
            if rule is not None and rule.drops:
                await request.content.read(1)
                raise ConnectionBroken
            got = Got(request.method, key, request.query_string, headers, await request.read())
            reply = await (
                rule.act(self, got, lambda: self._forward(request, got)) if rule else self._forward(request, got)
            )
            with self._lock:
                if seen is self._seen and index < len(seen):
                    was = seen[index]
                    seen[index] = replace(was, status=reply.status)
            return await self._send(request, reply)
        except (ConnectionBroken, aiohttp.ClientError):
            if request.transport is not None:
                request.transport.abort()
            raise asyncio.CancelledError from None  # there is nobody left to answer

    async def _forward(self, request: web.Request, got: Got) -> Reply:
        url = URL(f"{self._server_url}{request.raw_path}", encoded=True)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        skip = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
        async with self._session.request(
            got.method, url, data=got.body, headers=headers, skip_auto_headers=skip, allow_redirects=False
        ) as answer:
            body = await answer.read()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
            if got.method == "HEAD" and "Content-Length" in answer.headers:
                kept["Content-Length"] = answer.headers["Content-Length"]
        if got.method in ("PUT", "POST") and answer.status < 300 and "uploadId" not in got.query:
            self.puts[got.key] = time.monotonic()
        return Reply(answer.status, kept, body)

    async def _send(self, request: web.Request, reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        if request.method != "HEAD":
            response.content_length = len(reply.body)
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(reply.body if reply.cut_at is None else reply.body[: reply.cut_at])
            if reply.cut_at is not None:
                raise ConnectionBroken
        await response.write_eof()
        return response


@contextmanager
def proxied(server_url: str, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy before a server, for the time of the block."""
    proxy = FaultProxy(server_url, seed)
    try:
        yield proxy
    finally:
        proxy.stop()
