"""Attacks by strangers on a studio beyond loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from flowloom.server import connections, security
from flowloom.server.sessions import FREE_TRIES, Sessions, Tries
from tests.server.conftest import Studio
from tests.server.served import Served

TOKEN = "the-token-of-this-test"


def test_a_session_ends_with_the_sign_out_and_with_another_token(tmp_path: Path):
    sessions = Sessions(tmp_path / "sessions.json", TOKEN)
    first, second = sessions.begin(), sessions.begin()
    assert first not in (tmp_path / "sessions.json").read_text()
    sessions.end(first)
    again = Sessions(tmp_path / "sessions.json", TOKEN)
    assert (again.holds(first), again.holds(second)) == (False, True)
    assert not Sessions(tmp_path / "sessions.json", "another").holds(second)


def test_only_an_address_that_guesses_tokens_waits_longer_and_longer():
    tries = Tries()
    waits = []
    for i in range(FREE_TRIES + 8):
        tries.failed("192.0.2.1", f"guess {i}")
        waits.append(round(tries.wait_s("192.0.2.1")))
    assert waits[: FREE_TRIES - 1] == [0] * (FREE_TRIES - 1)
    assert waits[FREE_TRIES - 1 :] == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert tries.wait_s("192.0.2.2") == 0


def test_a_script_with_an_old_token_is_no_guesser():
    tries = Tries()
    for _ in range(1000):
        tries.failed("192.0.2.1", "the old one")
    assert tries.wait_s("192.0.2.1") == 0


def test_signing_out_makes_a_copied_cookie_worthless(studio_at: Callable[..., Studio]):
    studio = studio_at("home", "--token", TOKEN).start()
    with httpx.Client(base_url=studio.url) as browser, httpx.Client(base_url=studio.url) as thief:
        browser.post("/api/session", json={"token": TOKEN}).raise_for_status()
        thief.cookies.update(browser.cookies)
        assert thief.get("/api/runs").status_code == 200
        browser.delete("/api/session")
        assert thief.get("/api/runs").status_code == 401
        assert thief.get("/api/runs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        tried = [
            thief.post("/api/session", json={"token": f"{i}"}).status_code for i in range(FREE_TRIES + 1)
        ]
        assert tried == [401] * FREE_TRIES + [429]


@pytest.mark.slow
def test_half_sent_headers_keep_no_connection_and_no_file(studio_at: Callable[..., Studio]):
    studio = studio_at("home", "--token", TOKEN).start()
    host, port = studio.url.removeprefix("http://").split(":")
    held = []
    for _ in range(1200):
        held.append(socket.create_connection((host, int(port)), timeout=30))
        held[-1].sendall(b"GET /api/health HTTP/1.1\r\nHost: ")
    assert httpx.get(f"{studio.url}/api/health", timeout=10).status_code == 200, "the oldest went first"
    time.sleep(16)
    closed = 0
    for each in held:
        each.settimeout(5)
        try:
            closed += each.recv(1) == b""
        except ConnectionError:
            closed += 1
        each.close()
    assert closed == len(held)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "home") as served:
        yield served


def connect(served: Served, content: bytes) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", served.server.servers[0].sockets[0].getsockname()[1]), 20)
    made.sendall(content)
    return made


@pytest.mark.parametrize("is_trickling", [False, True])
def test_a_body_that_does_not_arrive_ends_its_request(
    served: Served, monkeypatch: pytest.MonkeyPatch, is_trickling: bool
):
    monkeypatch.setattr(security, "BODY_WITHIN_S", 1.0)
    monkeypatch.setattr(connections, "HEADERS_WITHIN_S", 1.0)
    head = b"POST /api/datasets HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
    began = time.monotonic()
    with connect(served, head) as client:
        client.settimeout(0.2)
        got = b""
        while True:
            try:
                some = client.recv(65536)
            except TimeoutError:
                if is_trickling:
                    client.sendall(b" ")
                assert time.monotonic() < began + 20
                continue
            except ConnectionError:
                break
            got += some
            if not some:
                break
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in got
    assert b"did not arrive within 1 s" in got
    assert time.monotonic() - began > 0.9


def test_a_reader_that_stalls_loses_its_connection_and_a_slow_one_does_not(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "STALLED_AFTER_S", 1.0)
    size = 64 * 2**20
    (served.home / "data").mkdir(exist_ok=True)
    with (served.home / "data" / "large.bin").open("wb") as file:
        file.truncate(size)
    request = (
        b"GET /api/roots/data/file?path=large.bin HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )
    with connect(served, request) as stalled, connect(served, request) as slow:
        num_bytes, until = 0, time.monotonic() + 4.0
        while time.monotonic() < until:
            num_bytes += len(slow.recv(2**20))
            time.sleep(0.1)
        assert length_of(slow) + num_bytes > size, "who takes something gets everything"
        assert length_of(stalled) < size, "who takes nothing is cut off"


def length_of(client: socket.socket) -> int:
    """How many bytes still come."""
    num_bytes = 0
    with suppress(ConnectionError):
        while some := client.recv(2**20):
            num_bytes += len(some)
    return num_bytes
