"""A stand-in for the Hugging Face hub as one downloads from it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ModelHub(ThreadingHTTPServer):
    """Serves the files of `repos`: listing, HEAD, GET with ranges."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        """Method, path, and the Range header."""
        self.moved_to = ""
        """Another address that files are said to be at."""
        self.breaks_after: int | None = None
        """So many bytes of the next file are sent, then the connection is dropped."""

    def add(self, repo: str, folder: Path) -> None:
        """Put the files of `folder` into `repo`."""
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        self.repos[repo] = {name: path.read_bytes() for name, path in files.items()}


class Request(BaseHTTPRequestHandler):
    server: ModelHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        found = re.fullmatch(
            r"/(?:api/models/)?([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.+))?", path
        )
        repo = found[1] if found else ""
        if found and repo in self.server.gated:
            self.refuse(403, "GatedRepo")
        elif not found or repo not in self.server.repos:
            self.refuse(404, "RepoNotFound")
        elif found[3] not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif found[2] == "resolve" and self.server.moved_to:
            linked = {"X-Linked-Size": "9", "X-Linked-Etag": '"one"', "X-Repo-Commit": COMMIT}
            self.send(302, b"", {"Location": f"{self.server.moved_to}{path}", **linked})
        elif found[2] == "resolve":
            self.give(self.server.repos[repo][found[4]])
        else:
            files = self.server.repos[repo].items()
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files]
            siblings = [{"rfilename": name} for name, _ in files]
            about = {"id": repo, "sha": COMMIT, "siblings": siblings}
            self.send(200, json.dumps(tree if found[2] == "tree" else about).encode(), {})

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": "refused"})

    def give(self, data: bytes) -> None:
        start = int((re.findall(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0])[0])
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, data[start:], headers)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self.server.breaks_after
        if limit is not None and "resolve" in self.path and len(body) > limit:
            self.server.breaks_after = None
            self.wfile.write(body[:limit])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def model_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    import huggingface_hub.constants

    server = ModelHub()
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_not-a-real-token")
    # Read from HF_HUB_DISABLE_XET at import: xet storage is a separate service, which no stand-in has.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()
