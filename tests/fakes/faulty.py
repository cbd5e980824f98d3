"""A proxy between us and a store, which does to requests what networks and busy stores do."""

import http.client
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.fakes.seaweed import Seaweed

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
DENIED = {
    "denied": (403, b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"),
    "expired": (400, b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"),
    "unknown key": (403, b"<Error><Code>InvalidAccessKeyId</Code></Error>"),
}
"""Further faults: what S3 answers when permissions are taken away, a session ends or a key is deleted."""
ANSWERS = DENIED | {
    "no bucket": (404, b"<Error><Code>NoSuchBucket</Code></Error>"),
    "full": (403, b"<Error><Code>QuotaExceeded</Code><Message>The quota is used up.</Message></Error>"),
}
"""Faults that are answers of S3."""
AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing sends RST in place of FIN."""
FAULTS = ("slow down", "reset", "truncate", "drop", "slow")
"""503 SlowDown; a reset, or an end, in mid-body; a connection closed without an answer; a late first byte."""


class Faulty:
    """Passes requests on to `upstream`, but for those that `plan` (number, method, path) gives a fault."""

    def __init__(self, upstream: str):
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname, parts.port)
        self.plan: Callable[[int, str, str], str | None] = lambda number, method, path: None
        self.slow_s = 1.0
        self.seen = 0
        self.done: Counter[str] = Counter()
        """How often each fault was done; `passed` counts the rest."""
        self.lock = threading.Lock()
        self.port = 0
        self.server: Server | None = None
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        """Listen, on the same port as before."""
        self.server = Server(self)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=[0.02], daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and break those that there are."""
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            for connection in list(self.server.connections):
                reset(connection)
            self.server = None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, proxy: Faulty):
        self.proxy = proxy
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", proxy.port), Request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this is for."""


class Request(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def pass_on(self) -> None:
        proxy = self.server.proxy
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with proxy.lock:
            number, proxy.seen = proxy.seen, proxy.seen + 1
            fault = proxy.plan(number, self.command, self.path)
            proxy.done[fault or "passed"] += 1
        if fault == "drop" or proxy.server is not self.server:
            self.close_connection = True
        elif fault == "slow down":
            self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
        elif fault in ANSWERS:
            status, body = ANSWERS[fault]
            self.answer(status, [("Content-Type", "application/xml")], body)
        else:
            if fault == "slow":
                time.sleep(proxy.slow_s)
            status, headers, body = self.fetch(sent)
            if fault == "lost":  # done, but without an answer
                self.close_connection = True
                return
            self.answer(status, headers, body[::-1] if fault == "garbled" else body, cut=fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on  # noqa: N815 -- http.server calls them

    def fetch(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        upstream = http.client.HTTPConnection(*self.server.proxy.upstream, timeout=30)  # pyright: ignore[reportArgumentType]
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(sent)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            upstream.close()

    def answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, cut: str | None = None
    ) -> None:
        self.send_response_only(status)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        is_cut = cut in ("reset", "truncate") and body
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if is_cut else body)
        if is_cut:
            self.close_connection = True
            if cut == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
                self.connection.close()


def reset(connection: socket.socket) -> None:
    """End a connection, from another thread."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
    except OSError:
        return


@pytest.fixture
def faulty(seaweed: Seaweed) -> Iterator[Faulty]:
    """A proxy before the store of the tests; it does nothing bad until it has a plan."""
    proxy = Faulty(seaweed.endpoint)
    yield proxy
    proxy.down()
