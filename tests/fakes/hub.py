"""A stand-in for the Hugging Face hub."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

TOKEN = "hf_not-a-real-token"


class Hub(ThreadingHTTPServer):
    """The hub's HTTP API for uploads of models (git-LFS batch API, basic transfer)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.requests: list[tuple[str, str, str]] = []
        """Those that change something: method, path with query, all but the Authorization header."""
        self.failures: list[tuple[str, int]] = []
        """(part of a path, status) of answers to give first; 0 drops the connection."""


class Request(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/api/models/").removesuffix("/revision/main")
        is_there = name in self.server.repos
        self.answer({"id": name, "siblings": []} if is_there else {"error": "none"}, 200 if is_there else 404)

    def do_POST(self) -> None:
        body = self.take()
        if body is None:
            return
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
            # Older clients say it in another way.
            visibility = wanted.get("visibility") or ("private" if wanted["private"] else "public")
            self.server.repos.setdefault(name, visibility)
            self.answer({"url": f"{self.server.url}/{name}"})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.answer({"transfer": "basic", "objects": [self.instructions(one) for one in objects]})
        elif path.startswith("/verify/"):
            wanted = json.loads(body)
            is_there = len(self.server.stored[wanted["oid"]]) == wanted["size"]
            self.answer({}, 200 if is_there else 404)
        elif path.endswith("/commit/main"):
            self.commit(body)
        else:
            self.answer({"error": f"not known to the stand-in: {path}"}, 404)

    def do_PUT(self) -> None:
        body = self.take()
        if body is None:
            return
        oid = self.path.split("/")[-1]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.stored[oid] = body
        self.answer({})

    def take(self) -> bytes | None:
        """The request's body, or None after an answer that this request is to fail with."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = "\n".join(f"{k}: {v}" for k, v in self.headers.items() if k.lower() != "authorization")
        self.server.requests.append((self.command, self.path, headers + body.decode("latin1")))
        for failure in self.server.failures:
            if failure[0] in self.path:
                self.server.failures.remove(failure)
                if failure[1]:
                    self.answer({"error": "the stand-in fails on purpose"}, failure[1])
                else:
                    self.close_connection = True
                return None
        if not self.path.startswith("/store/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
            return None
        return body

    def instructions(self, wanted: dict) -> dict:
        url, oid = self.server.url, wanted["oid"]
        actions = {"upload": {"href": f"{url}/store/{oid}"}, "verify": {"href": f"{url}/verify/{oid}"}}
        return wanted | ({} if oid in self.server.stored else {"actions": actions})

    def commit(self, body: bytes) -> None:
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                self.server.commits.append(value["summary"])
            elif part["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.stored[value["oid"]]
            else:
                self.server.files[value["path"]] = base64.b64decode(value["content"])
        self.answer({"commitUrl": f"{self.server.url}/me/model/commit/1", "commitOid": "1" * 40})

    def answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub.constants

    server = Hub()
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # Read from HF_HUB_DISABLE_XET at import: xet storage is a separate service, which no stand-in has.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()
