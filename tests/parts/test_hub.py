"""Uploads to a stand-in for the hub: retried, complete, and the token only where it belongs."""

import base64
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flowloom.errors import ConfigError
from flowloom.parts.hub import Uploaded, Uploader

# huggingface_hub hands its files to httpx2 in a way that this one deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

TOKEN = "hf_not-a-real-token"


class Hub(ThreadingHTTPServer):
    """What the hub's HTTP API does when a model is uploaded (git-LFS batch API, basic transfer)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        self.commits: list[str] = []
        self.requests: list[tuple[str, str, str]] = []
        """Method, path with query, and everything sent but the Authorization header, as text."""
        self.failures: list[tuple[str, int]] = []
        """(part of a path, status) of answers to give first; 0 drops the connection."""


class Request(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.take()
        if body is None:
            return
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = "/".join(part for part in (wanted.get("organization"), wanted["name"]) if part)
            self.server.repos.setdefault(name, wanted["visibility"])
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
    # Read from HF_HUB_DISABLE_XET at import: xet storage is a service of its own, which no stand-in has.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step_00000100"
    (folder / "state").mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(b"weights" * 1000)
    (folder / "adapter_ema.safetensors").write_bytes(b"average" * 1000)
    (folder / "checkpoint.json").write_text('{"step": 100}')
    (folder / "state" / "optimizer.pt").write_bytes(b"moments" * 10000)
    return folder


def upload(tmp_path: Path, *folders: Path, wait: bool = True) -> list[Uploaded]:
    results: list[Uploaded] = []
    uploader = Uploader("me/model", tmp_path / "uploading", results.append, waits=(0.01, 0.01))
    for folder in folders:
        uploader.submit(folder)
    uploader.close(wait)
    return results


def test_a_checkpoint_arrives_whole_and_without_its_state(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    (result,) = upload(tmp_path, checkpoint)
    assert result == Uploaded(100, url=f"{hub.url}/me/model/commit/1")
    assert hub.repos == {"me/model": "private"}
    assert hub.commits == ["Add step_00000100"]
    assert hub.files == {
        f"step_00000100/{name}": (checkpoint / name).read_bytes()
        for name in ("adapter.safetensors", "adapter_ema.safetensors", "checkpoint.json")
    }
    assert not list((tmp_path / "uploading").iterdir())


def test_the_token_goes_to_the_hub_in_the_authorization_header_only(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    upload(tmp_path, checkpoint)
    assert len(hub.requests) >= 6
    assert not [request for request in hub.requests if TOKEN in "".join(request)]
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize("status", [500, 0], ids=["answers 500", "drops the line"])
def test_a_hub_that_fails_first_is_asked_again(
    status: int, hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.failures = [("/api/repos/create", status), ("/api/repos/create", status)]
    (result,) = upload(tmp_path, checkpoint)
    assert result.error is None
    assert len(hub.files) == 3
    assert sum("/api/repos/create" in path for _, path, _ in hub.requests) == 3


@pytest.mark.slow
def test_an_upload_cut_in_the_middle_is_completed(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.failures = [("/store/", 400), ("/verify/", 0), ("/commit/", 500)]
    (result,) = upload(tmp_path, checkpoint)
    assert result.error is None
    assert len(hub.files) == 3
    assert hub.commits == ["Add step_00000100"]


def test_a_hub_that_stays_away_is_given_up_with_what_to_do(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.failures = [("/api/repos/create", 500)] * 3
    (result,) = upload(tmp_path, checkpoint)
    assert result.url is None
    assert "step_00000100 was not uploaded to me/model" in result.error
    assert "hf upload me/model" in result.error
    assert not hub.failures


def test_a_refused_token_is_not_tried_again(hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    (result,) = upload(tmp_path, checkpoint)
    assert "HF_TOKEN" in result.error
    assert "hf_another" not in result.error
    assert len(hub.requests) == 1


def test_checkpoints_are_uploaded_in_order_even_after_they_were_deleted(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    second = checkpoint.with_name("step_00000200")
    shutil.copytree(checkpoint, second)
    results: list[Uploaded] = []
    uploader = Uploader("me/model", tmp_path / "uploading", results.append, waits=(0.01,))
    for folder in (checkpoint, second):
        uploader.submit(folder)
        shutil.rmtree(folder)  # as retention does
    uploader.close(wait=True)
    assert [(result.step, result.error) for result in results] == [(100, None), (200, None)]
    assert hub.commits == ["Add step_00000100", "Add step_00000200"]
    assert len(hub.files) == 6


def test_what_is_cut_off_by_closing_is_uploaded_by_the_next_run(
    hub: Hub, checkpoint: Path, tmp_path: Path
) -> None:
    hub.failures = [("/api/repos/create", 500)]
    results: list[Uploaded] = []
    uploader = Uploader("me/model", tmp_path / "uploading", results.append, waits=(3600.0,))
    uploader.submit(checkpoint)
    deadline = time.monotonic() + 10
    while not hub.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    uploader.close(wait=False)
    uploader._thread.join(5)
    assert not uploader._thread.is_alive()
    assert not results
    assert not hub.files

    shutil.rmtree(checkpoint)
    assert [result.error for result in upload(tmp_path)] == [None]
    assert len(hub.files) == 3


def test_no_token_is_said_before_the_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"hub\.repo_id: HF_TOKEN is not set"):
        Uploader("me/model", tmp_path, lambda result: None)
