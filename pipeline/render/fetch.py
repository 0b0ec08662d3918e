"""Fetches images by URI: http(s), `s3://`, files. Rows come from strangers, so a URI proves nothing.

An http(s) fetch is bounded in bytes, time and redirects, and may not reach addresses that are not public: each
connection's real peer is checked after it is made and before a byte is sent, so neither a redirect nor a name that
resolves differently the second time gets past. Proxies named in the environment are not used.
"""

import ipaddress
import socket
import time
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from pipeline.config import ImageConfig, StorageConfig
from pipeline.errors import RowError, StorageError
from pipeline.render.images import image_error
from pipeline.storage import Store

CHUNK_BYTES = 64 * 1024
NAT64 = ipaddress.ip_network("64:ff9b::/96")
REDIRECTS = (301, 302, 303, 307, 308)
ACCEPT = {"Accept": "image/*", "User-Agent": "herd-batch"}


class PrivateAddressError(Exception):
    """A connection led to an address that is not public."""


def check_public(address: str) -> None:
    """Raises `PrivateAddressError` unless the IP address is a public one."""
    ip = ipaddress.ip_address(address.split("%")[0])
    inner = [ip]
    if isinstance(ip, ipaddress.IPv6Address):
        # an IPv4 address can travel inside an IPv6 one: mapped, by 6to4, or behind NAT64
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        inner = [found for found in (ip.ipv4_mapped, ip.sixtofour, nat64) if found] or [ip]
    if not all(found.is_global and not found.is_multicast for found in inner):
        raise PrivateAddressError(address)


def _checked(connection: Any, sock: socket.socket) -> socket.socket:
    try:
        check_public(sock.getpeername()[0])
    except PrivateAddressError:
        sock.close()
        raise
    return sock


class _PublicHTTPConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(self, super()._new_conn())


class _PublicHTTPSConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(self, super()._new_conn())


class _PublicHTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicHTTPConnection


class _PublicHTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PublicHTTPSConnection


class Fetcher:
    """Fetches by URI. Safe to use from many threads."""

    def __init__(self, limits: ImageConfig, storage: StorageConfig) -> None:
        self._limits, self._storage = limits, storage
        self._pools = urllib3.PoolManager(num_pools=32, maxsize=16)
        if not limits.allow_private_addresses:
            self._pools.pool_classes_by_scheme = {"http": _PublicHTTPPool, "https": _PublicHTTPSPool}

    def fetch(self, uri: str) -> bytes:
        """The bytes behind a URI.

        Raises:
            RowError: `image_missing`, `image_forbidden`, `image_timeout`, `image_too_large`, `image_unreachable`,
                `address_not_allowed`, `scheme_not_allowed`.
        """
        try:
            scheme = urlsplit(uri).scheme.lower()
        except ValueError as e:
            raise image_error("image_unreachable", f"not a URI: {e}") from None
        if scheme in ("http", "https"):
            return self._http(uri)
        if scheme in ("", "file"):
            if not self._limits.allow_local_files:
                raise image_error(
                    "address_not_allowed",
                    f"{_shown(uri)} is a local file; `render: {{images: {{allow_local_files: true}}}}` would allow it",
                )
            return self._stored(uri)
        if scheme == "s3":
            return self._stored(uri)
        raise image_error("scheme_not_allowed", f"{scheme}:// is not fetched: {_shown(uri)}")

    def _stored(self, uri: str) -> bytes:
        try:
            store = Store(uri, self._storage)
            size = store.stat(uri).size
            if size > self._limits.max_bytes:
                raise image_error(
                    "image_too_large", f"{_shown(uri)}: {size:,} bytes, over the limit of {self._limits.max_bytes:,}"
                )
            return store.read(uri)
        except ValueError as e:  # a path with a null byte
            raise image_error("image_unreachable", f"{_shown(uri)}: {e}") from None
        except StorageError as e:
            cause = e.__cause__
            if isinstance(cause, FileNotFoundError):
                raise image_error("image_missing", f"nothing is at {_shown(uri)}") from None
            if isinstance(cause, PermissionError):
                raise image_error("image_forbidden", f"{_shown(uri)} may not be read") from None
            raise image_error("image_unreachable", f"{_shown(uri)}: {type(cause or e).__name__}") from None

    def _http(self, uri: str) -> bytes:
        deadline = time.monotonic() + self._limits.timeout_s
        shown = _shown(uri)
        try:
            for _ in range(self._limits.max_redirects + 1):
                response = self._pools.urlopen(
                    "GET",
                    uri,
                    headers=ACCEPT,
                    redirect=False,
                    preload_content=False,
                    retries=urllib3.Retry(connect=0, read=0, redirect=0, status=0, other=0, backoff_factor=0.2),
                    timeout=urllib3.Timeout(total=max(0.01, deadline - time.monotonic())),
                )
                try:
                    if response.status not in REDIRECTS:
                        return self._body(response, shown, deadline)
                    uri = urljoin(uri, response.headers.get("Location", ""))
                finally:
                    response.close()
                if urlsplit(uri).scheme not in ("http", "https"):
                    raise image_error("scheme_not_allowed", f"{shown} redirects away from http(s)")
        except PrivateAddressError as e:
            raise image_error("address_not_allowed", f"{shown} leads to {e}, which is not a public address") from None
        except urllib3.exceptions.HTTPError as e:
            reason = getattr(e, "reason", None) or e
            never_connected = isinstance(reason, urllib3.exceptions.NewConnectionError)  # a TimeoutError by its class
            if isinstance(reason, urllib3.exceptions.TimeoutError) and not never_connected:
                raise self._slow(shown) from None
            raise image_error("image_unreachable", f"{shown}: {type(reason).__name__}") from None
        except (ValueError, OSError) as e:
            raise image_error("image_unreachable", f"{shown}: {type(e).__name__}") from None
        raise image_error("image_unreachable", f"{shown}: more than {self._limits.max_redirects} redirects")

    def _slow(self, shown: str) -> RowError:
        return image_error("image_timeout", f"{shown} took longer than {self._limits.timeout_s:g} s")

    def _body(self, response: Any, shown: str, deadline: float) -> bytes:
        if response.status in (401, 403):
            raise image_error("image_forbidden", f"{shown}: HTTP {response.status}")
        if response.status in (404, 410):
            raise image_error("image_missing", f"{shown}: HTTP {response.status}")
        if response.status != 200:
            raise image_error("image_unreachable", f"{shown}: HTTP {response.status}")
        body = bytearray()
        while chunk := response.read1(CHUNK_BYTES):
            body += chunk
            if len(body) > self._limits.max_bytes:
                raise image_error("image_too_large", f"{shown}: more than {self._limits.max_bytes:,} bytes")
            if time.monotonic() > deadline:
                raise self._slow(shown)
        return bytes(body)


def _shown(uri: str) -> str:
    """The URI without its query and user, which may be credentials (presigned URLs), and not too long."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"[:300] if parts.scheme else parts.path[:300]
