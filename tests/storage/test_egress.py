"""A store's client reaches its endpoint and nothing else, however the store answers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from flowloom.errors import Denied, SourceError, Unavailable
from flowloom.storage import egress as ways
from flowloom.storage.base import Source, StorageSection
from flowloom.storage.egress import Egress, open_egress
from flowloom.storage.open import open_source
from flowloom.storage.ssrf import STRICT, VARIABLE, Allowed

CONTENT = b"what only this machine may see"
TOKEN = "session-token-of-nobody"


class Server(ThreadingHTTPServer):
    """A store that may send every request on, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sends_on_to = ""
        self.stays = ""
        """A path that is answered nevertheless."""
        self.status = 307
        self.requests: list[tuple[str, str, dict[str, str]]] = []


class Request(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.requests.append((self.command, self.path, dict(self.headers.items())))
        target = "" if self.path == self.server.stays else self.server.sends_on_to
        body = b"" if target else CONTENT
        self.send_response(self.server.status if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 30 Nov 2026 07:00:00 GMT")
        self.send_header("ETag", '"one"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 -- http.server calls them


def serving() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def store() -> Iterator[Server]:
    yield from serving()


@pytest.fixture
def inner() -> Iterator[Server]:
    """Addresses that a malicious store would have us read."""
    yield from serving()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "loom-key",
        "AWS_SECRET_ACCESS_KEY": "loom-secret",
        "AWS_SESSION_TOKEN": TOKEN,
    }.items():
        monkeypatch.setenv(name, value)
    for name in (VARIABLE, STRICT, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


def bucket(server: Server, **changes: object) -> Source:
    settings: dict = {"endpoint": server.url, "tries": 1, "patience_minutes": 0.0, **changes}
    return open_source("s3://bucket", StorageSection(**settings))


REQUESTS: dict[str, Callable[[Source], object]] = {
    "read": lambda source: source.read("x"),
    "read a part": lambda source: source.read_buffer("x", 0, 4),
    "stat": lambda source: source.stat("x"),
    "list": lambda source: list(source.list("")),
    "delete": lambda source: source.delete("x"),
}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("request_", REQUESTS)
def test_no_redirect_of_a_store_is_followed_to_another_server(
    store: Server, inner: Server, request_: str, status: int
):
    store.sends_on_to, store.status = f"{inner.url}/x", status
    with pytest.raises(Denied, match=f"redirects to {inner.url}.*storage.endpoint") as caught:
        REQUESTS[request_](bucket(store))
    assert inner.requests == []
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_writes_go_to_no_other_server(store: Server, inner: Server, status: int):
    store.sends_on_to, store.status = f"{inner.url}/x", status
    with pytest.raises(SourceError, match=f"returned {status}"):  # its client sends no body twice
        bucket(store).write("x", b"content")
    assert inner.requests == []
    assert len(store.requests) == 1, "no further try would change it"


@pytest.mark.parametrize("host", ["localhost", "[::1]", "127.0.0.2"])
def test_no_other_name_of_the_same_port_is_followed(store: Server, host: str):
    store.sends_on_to = f"http://{host}:{store.server_port}/again"
    with pytest.raises(Denied, match="redirects to"):
        bucket(store).read("x")
    assert [path for _, path, _ in store.requests] == ["/bucket/x"]


def test_a_redirect_within_the_store_is_followed(store: Server):
    store.sends_on_to, store.stays = f"{store.url}/bucket/y", "/bucket/y"
    assert bucket(store).read("x") == CONTENT
    assert store.requests[0][2]["x-amz-security-token"] == TOKEN
    assert "proxy-authorization" not in {name.lower() for name in store.requests[0][2]}
    paths = [path for _, path, _ in store.requests]
    assert paths == ["/bucket/x", "/bucket/y"], "as an origin expects them, not as a proxy does"


def test_an_endpoint_of_a_configuration_may_not_be_private_in_a_studio(
    store: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(Denied, match=VARIABLE):
        bucket(store).read("x")
    assert store.requests == []
    monkeypatch.setenv(VARIABLE, "127.0.0.1")
    assert bucket(store).read("x") == CONTENT


def test_an_endpoint_of_the_owner_may_be_private(store: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    assert bucket(store, endpoint=None).read("x") == CONTENT


def test_a_store_that_is_not_there_is_unavailable(store: Server):
    store.server_close()
    with pytest.raises(Unavailable, match="no connection"):
        bucket(store).read("x")


@pytest.mark.parametrize("region", ["x@127.0.0.1/", "a.evil.example/#", "127.0.0.1:80/?", "a b", ""])
def test_a_region_cannot_name_another_host(region: str):
    with pytest.raises(ValidationError):
        StorageSection(region=region)


def ask(egress: Egress, head: str, password: str | None = None) -> bytes:
    """The proxy's answer to a request by hand."""
    parts = urlsplit(egress.proxy_url)
    word = b64encode(f"store:{parts.password if password is None else password}".encode()).decode()
    with socket.create_connection((parts.hostname or "", parts.port or 0), 10) as connection:
        connection.sendall(f"{head}\r\nProxy-Authorization: Basic {word}\r\n\r\n".encode())
        try:
            return connection.recv(4096)
        except ConnectionResetError:
            return b""


def test_a_tunnel_for_tls_leads_to_the_endpoint_alone(store: Server, inner: Server):
    endpoint = f"https://127.0.0.1:{store.server_port}"
    egress = open_egress(endpoint, Allowed().and_given(endpoint), 5.0)
    assert ask(egress, f"CONNECT 127.0.0.1:{store.server_port} HTTP/1.1").startswith(b"HTTP/1.1 200 ")
    for target in (f"127.0.0.1:{inner.server_port}", f"localhost:{store.server_port}", "169.254.169.254:80"):
        assert ask(egress, f"CONNECT {target} HTTP/1.1").startswith(b"HTTP/1.1 421 ")
    assert ask(egress, f"GET {store.url}/x HTTP/1.1").startswith(b"HTTP/1.1 421 "), "not without TLS"


@pytest.mark.parametrize("password", ["", "guessed"])
def test_no_other_process_gets_through(store: Server, password: str):
    egress = open_egress(store.url, Allowed().and_given(store.url), 5.0)
    assert ask(egress, f"GET {store.url}/x HTTP/1.1", password) == b""
    assert store.requests == []


def test_reads_continue_after_the_proxy_was_killed(store: Server):
    source = bucket(store, tries=3)
    assert source.read("x") == CONTENT
    process = ways._process()._process
    assert process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert source.read("x") == CONTENT


def test_the_proxy_ends_with_its_process(tmp_path):
    import subprocess
    import sys
    import time

    import psutil

    code = (
        "from flowloom.storage import egress as e\n"
        "from flowloom.storage.ssrf import Allowed\n"
        "e.open_egress('http://127.0.0.1:9', Allowed(), 1.0); print(e._process()._process.pid, flush=True); "
        "import time; time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)
