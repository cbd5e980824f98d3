"""A token is tested with the service that it is for, and goes nowhere else."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.server.conftest import Studio

HF, WANDB = "hf_not-a-real-token", "not-a-real-wandb-key"
BASIC = base64.b64encode(f"api:{WANDB}".encode()).decode()


class Services(ThreadingHTTPServer):
    """The hub and Weights & Biases, as far as they say who a user is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status: int | None = None
        """Answered in place of everything."""
        self.location = ""
        self.data: list[object] = []
        """One answer of Weights & Biases in place of the default."""
        self.num_asked = 0


class Request(BaseHTTPRequestHandler):
    server: Services

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        is_known = self.headers["authorization"] == f"Bearer {HF}" and self.path == "/api/whoami-v2"
        self.answer(200 if is_known else 401, {"name": "ada"} if is_known else {"error": "Invalid"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/graphql"
        assert "viewer" in body["query"]
        is_known = self.headers["authorization"] == f"Basic {BASIC}"
        data = {"viewer": {"username": "ada"} if is_known else None}
        self.answer(200, {"data": (self.server.data or [data])[0]})

    def answer(self, status: int, content: object) -> None:
        self.server.num_asked += 1
        self.send_response(self.server.status or status)
        self.send_header("location", self.server.location)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


@pytest.fixture
def services() -> Iterator[Services]:
    server = Services()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def studio(
    studio_at: Callable[..., Studio], services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Studio:
    """A studio without secrets, for which `services` are the world."""
    monkeypatch.setenv("FLOWLOOM_SECRETS", str(tmp_path / "secrets.json"))
    monkeypatch.setenv("HF_ENDPOINT", services.url)
    monkeypatch.setenv("WANDB_BASE_URL", f"{services.url}/")
    for name in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return studio_at().start()


def test_a_token_is_accepted_refused_or_not_there(studio: Studio):
    for name, token in (("HF_TOKEN", HF), ("WANDB_API_KEY", WANDB)):
        absent = studio.http.post(f"/api/secrets/{name}/test")
        assert (absent.status_code, absent.json()["type"]) == (409, "urn:flowloom:secret-not-set")
        studio.http.put(f"/api/secrets/{name}", json={"value": "a-wrong-token"})
        assert studio.post(f"/api/secrets/{name}/test", {}) == {"is_accepted": False, "account": None}
        studio.http.put(f"/api/secrets/{name}", json={"value": token})
        assert studio.post(f"/api/secrets/{name}/test", {}) == {"is_accepted": True, "account": "ada"}


def test_a_service_that_cannot_be_asked_says_nothing_of_a_token(studio: Studio, services: Services):
    studio.http.put("/api/secrets/HF_TOKEN", json={"value": HF})
    services.status = 503
    answer = studio.http.post("/api/secrets/HF_TOKEN/test")
    assert (answer.status_code, answer.json()["type"]) == (502, "urn:flowloom:service-unreachable")
    assert services.url in answer.json()["detail"]
    studio.http.put("/api/secrets/WANDB_API_KEY", json={"value": WANDB})
    services.status = None
    for data in ([], ["viewer"], "viewer", {"viewer": "ada"}):
        services.data = [data]
        assert studio.http.post("/api/secrets/WANDB_API_KEY/test").status_code == 502
    services.shutdown()
    services.server_close()
    assert studio.http.post("/api/secrets/HF_TOKEN/test").status_code == 502
    assert HF not in (studio.home / "server.log").read_text()


def test_a_token_is_not_carried_on_to_another_host(studio: Studio, services: Services):
    # The same service by another name would accept it.
    services.status, services.location = (
        302,
        f"{services.url}/api/whoami-v2".replace("127.0.0.1", "localhost"),
    )
    studio.http.put("/api/secrets/HF_TOKEN", json={"value": HF})
    assert studio.http.post("/api/secrets/HF_TOKEN/test").status_code == 502
    assert services.num_asked == 1


def test_keys_of_stores_are_tested_with_a_bucket(studio: Studio):
    assert studio.http.post("/api/secrets/AWS_ACCESS_KEY_ID/test").status_code == 422
