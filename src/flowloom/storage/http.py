"""Files at HTTP(S) URLs, including presigned ones."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.storage.base import OnState, StorageSection, shown
from flowloom.storage.remote import Remote, Request, Response
from flowloom.storage.ssrf import Allowed

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

MAX_BYTES = 2**30
"""Limit for bodies of unknown length."""
CHUNK = 2**16
HOSTS = 256
"""Number of servers whose connections are kept open."""
REDIRECTS = 5
LONGEST_RETRY_AFTER_S = 120.0
TRANSIENT = {408, 425, 429}
"""Statuses below 500 that a retry may change."""


def open_store(url: str, storage: StorageSection, on_state: OnState, *, is_given: bool = True) -> Http:
    """The server of `url`; names are the rest of the URL, path and query included.

    A URL from the user, `is_given`, may name a host of a private network. URLs in datasets and redirects may
    name only private hosts that FLOWLOOM_PRIVATE_HOSTS allows.

    Raises:
        SourceError: the URL has no host.
    """
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and not parts.query and (parts.port is None or parts.port > 0)
    except ValueError:  # such as an unmatched bracket in the host, or a port that is not a number
        is_address = False
    if not is_address:
        raise SourceError(f"{shown(url)}: write http://HOST or https://HOST/FOLDER.")
    allowed = Allowed.from_environment()
    allowed = allowed.and_given(url) if is_given else allowed
    return Http(url, storage, on_state, allowed, is_given=is_given)


class Http(Remote):
    """Files of one server, by urllib3 in threads: obstore supports neither queries nor unknown lengths."""

    def __init__(
        self, url: str, storage: StorageSection, on_state: OnState, allowed: Allowed, *, is_given: bool
    ):
        # Addresses that a dataset names are permitted, and expire, one by one.
        super().__init__(shown(url), storage, on_state, is_trusted=False, is_guarded=is_given)
        parts = urlsplit(url)
        # Not the text for messages, which may hide more than the password.
        self._address = (
            parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl().rstrip("/")
        )
        # For servers, the slash distinguishes a folder from a file of the same name.
        self._root_url = f"{self._address}/" if parts.path.endswith("/") else self._address
        self._headers = _auth_headers(url)
        self._threads = _threads(storage.connections, os.getpid())
        self._pool = _pools(storage.connections, storage.timeout_s, os.getpid(), allowed)

    async def request(self, wanted: Request) -> Response:
        headers = dict(self._headers)
        if wanted.start is not None and wanted.length is not None:
            headers["Range"] = f"bytes={wanted.start}-{wanted.start + wanted.length - 1}"
        if wanted.etag:
            headers["If-None-Match"] = wanted.etag
        where = shown(f"{self.root}/{wanted.name}")
        loop = asyncio.get_running_loop()
        response = await loop.run_in_executor(self._threads, self._request, wanted.name, headers, where)
        stated = response.headers.get("Content-Length", "")

        async def body() -> bytes:
            return await loop.run_in_executor(self._threads, _body, response, wanted, where)

        return Response(
            size=int(stated) if stated.isdecimal() else None,
            etag=response.headers.get("ETag"),
            body=body,
            drop=response.close,
            is_unchanged=response.status == 304,
        )

    async def _ping(self) -> None:
        parts = urlsplit(self._address)
        loop = asyncio.get_running_loop()
        root, headers = f"{parts.scheme}://{parts.netloc}/", dict[str, str]()
        try:
            response = await loop.run_in_executor(self._threads, self._send, root, headers, self.root)
        except Unavailable:
            raise
        except SourceError:
            return
        response.close()

    def _request(self, name: str, headers: dict[str, str], where: str) -> BaseHTTPResponse:
        return self._send(f"{self._address}/{name}" if name else self._root_url, headers, where)

    def _send(self, address: str, headers: dict[str, str], where: str) -> BaseHTTPResponse:
        """The response before its body is read.

        Raises:
            SourceError: it has no body to read.
        """
        from urllib3.exceptions import HTTPError, LocationParseError

        try:
            response = self._pool.request(
                "GET", address, headers=headers, preload_content=False, redirect=True
            )
        except LocationParseError:
            raise SourceError(f"{where}: not a URL.") from None
        except (HTTPError, OSError, ValueError) as error:
            raise Unavailable(f"{where}: {_fault(error)}") from None
        if response.status in (200, 206, 304):
            return response
        response.close()
        raise _refusal(response, where)


@cache
def _threads(connections: int, pid: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """Shared by all servers; a forked process has its own."""
    return ThreadPoolExecutor(connections, thread_name_prefix="http")


@cache
def _pools(connections: int, timeout_s: float, pid: int, allowed: Allowed) -> PoolManager:  # noqa: ARG001
    """Shared by all servers with these settings; a forked process has its own."""
    import urllib3

    from flowloom.storage.connections import pool_manager

    # Its debug messages quote complete URLs, including the signatures of presigned ones.
    for name in ("urllib3.connectionpool", "urllib3.poolmanager", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_above_debug)
    return pool_manager(
        allowed,
        num_pools=HOSTS,
        maxsize=connections,
        timeout=urllib3.Timeout(connect=min(5.0, timeout_s), read=timeout_s),
        retries=urllib3.Retry(None, connect=0, read=0, status=0, other=0, redirect=REDIRECTS),
    )


def _auth_headers(url: str) -> dict[str, str]:
    """Headers of every request, with the credentials of `url`, which messages must not contain."""
    import urllib3

    parts = urlsplit(url)
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    return {"user-agent": "flowloom", "accept-encoding": "identity", **urllib3.make_headers(basic_auth=user)}


def _above_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO


def _body(response: BaseHTTPResponse, wanted: Request, where: str) -> bytes:
    """The body, or the requested range of it if the server sends everything.

    Raises:
        Unavailable: the connection broke.
        SourceError: the body is larger than MAX_BYTES.
    """
    from urllib3.exceptions import HTTPError

    skipped, end = 0, MAX_BYTES
    if wanted.start is not None and wanted.length is not None:
        skipped = wanted.start if response.status == 200 else 0
        end = skipped + wanted.length
    content = bytearray()
    try:
        for chunk in response.stream(CHUNK, decode_content=True):
            content += chunk
            if len(content) >= end:
                break
        else:
            response.release_conn()
            return bytes(content[skipped:])
    except (HTTPError, OSError) as error:
        raise Unavailable(f"{where}: {_fault(error)} after {len(content)} bytes") from None
    response.close()
    if wanted.length is None and len(content) > MAX_BYTES:
        raise SourceError(f"{where}: larger than {MAX_BYTES // 2**20} MiB.")
    return bytes(content[skipped:end])


def _refusal(response: BaseHTTPResponse, where: str) -> SourceError:
    status = response.status
    if status in (404, 410):
        return NotFound(f"{where}: the server returned {status}: not found.")
    if status in (401, 403):
        return Denied(
            f"{where}: the server returned {status}: access denied. Check that the URL is still valid.",
            said=str(status),
            is_about_keys=status == 401,
        )
    if status < 500 and status not in TRANSIENT:
        return SourceError(f"{where}: the server returned {status}.")
    retry_after = response.headers.get("Retry-After", "")
    after = min(float(retry_after), LONGEST_RETRY_AFTER_S) if retry_after.isdecimal() else 0.0
    return Unavailable(
        f"{where}: the server returned {status}", is_busy=status in (429, 503), retry_after_s=after
    )


def _fault(error: Exception) -> str:
    """A description of the error without its own text, which quotes the URL."""
    from urllib3 import exceptions

    cause = getattr(error, "reason", None) or error
    if isinstance(cause, exceptions.NameResolutionError):
        return "no such host"
    if isinstance(cause, exceptions.SSLError):
        return "its certificate or TLS is not accepted"
    if isinstance(cause, exceptions.NewConnectionError):  # before the timeouts, because it is a subclass
        return "no connection"
    if isinstance(cause, exceptions.TimeoutError | TimeoutError):
        return "timed out"
    return "the connection broke"
