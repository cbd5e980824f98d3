"""A stand-in for servers of files, or a hub that redirects to them, with faults."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Files(ThreadingHTTPServer):
    """Serves `contents` by path; what goes wrong is switched on by its attributes."""

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Request)
        self.url = f"http://{host}:{self.server_port}"
        self.contents: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}
        """Path to the address that it sends on to."""
        self.linked: dict[str, bytes] = {}
        """Path to the content that the hub's headers describe, which may differ from the content sent."""
        self.next: dict[str, str] = {}
        """Path to that of the next page of a list."""
        self.has_ranges = True
        self.states_length = True
        self.breaks_after: list[int] = []
        """Bytes after which the next answers break off, one each."""
        self.holds_after: int | None = None
        """Bytes after which answers wait for `may_continue`."""
        self.may_continue = threading.Event()
        self.states: list[int] = []
        """Answers to give first, before anything else."""
        self.kind = "application/octet-stream"
        self.etag: str | None = None
        """In place of one made of the content."""
        self.claims: int | None = None
        """A size to claim instead of the real one."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path, and headers in lower case."""

    def ranges(self) -> list[str | None]:
        """The part of the file that each request asked for."""
        return [headers.get("range") for _, headers in self.requests]


class Request(BaseHTTPRequestHandler):
    server: Files
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if server.states:
            self.end(server.states.pop(0))
        elif path in server.moved:
            described = server.linked.get(path)
            oid = {} if described is None else {
                "X-Linked-ETag": f'"{hashlib.sha256(described).hexdigest()}"',
                "X-Linked-Size": str(len(described)),
            }  # fmt: skip
            self.end(302, {"Location": server.moved[path], **oid})
        elif path not in server.contents:
            self.end(404)
        else:
            self.send(server.contents[path])

    def send(self, content: bytes) -> None:
        server = self.server
        etag = f'"{server.etag or hashlib.md5(content).hexdigest()}"'
        begin, end, wanted = 0, len(content), self.headers.get("Range", "")
        fresh = self.headers.get("If-Range", etag) == etag
        is_part = bool(wanted) and server.has_ranges and fresh
        if is_part:
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(end, int(last) + 1) if last else end
            if begin >= len(content):
                self.end(416, {"Content-Range": f"bytes */{len(content)}"})
                return
        self.send_response(206 if is_part else 200)
        if is_part:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
        self.send_header("ETag", etag)
        self.send_header("Content-Type", server.kind)
        if following := server.next.get(self.path.partition("?")[0]):
            self.send_header("Link", f'<{following}>; rel="next"')
        if server.states_length:
            self.send_header("Content-Length", str(server.claims or end - begin))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.pour(content[begin:end], is_whole=end == len(content))

    def pour(self, body: bytes, is_whole: bool) -> None:
        server = self.server
        if not is_whole:
            self.wfile.write(body)
            return
        end = server.breaks_after.pop(0) if server.breaks_after else len(body)
        if server.holds_after is not None and not server.may_continue.is_set():
            self.wfile.write(body[: server.holds_after])
            self.wfile.flush()
            server.may_continue.wait(60)
            body, end = body[server.holds_after :], end - server.holds_after
        self.wfile.write(body[: max(0, end)])
        if end < len(body) or not server.states_length or server.claims:
            self.close_connection = True

    def end(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()


def serving(host: str = "127.0.0.1") -> Iterator[Files]:
    server = Files(host)
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    yield server
    server.may_continue.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def files() -> Iterator[Files]:
    """A server of files."""
    yield from serving()


@pytest.fixture
def elsewhere() -> Iterator[Files]:
    """Another one, at another port: another origin."""
    yield from serving()
