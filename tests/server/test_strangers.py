"""What strangers can do to a studio beyond loopback: not much."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from flowloom.server.sessions import FREE_TRIES, Sessions, Tries
from tests.server.conftest import Studio

TOKEN = "the-token-of-this-test"


def test_a_session_ends_with_the_sign_out_and_with_another_token(tmp_path: Path):
    sessions = Sessions(tmp_path / "sessions.json", TOKEN)
    first, second = sessions.begin(), sessions.begin()
    assert first not in (tmp_path / "sessions.json").read_text()
    sessions.end(first)
    again = Sessions(tmp_path / "sessions.json", TOKEN)
    assert (again.holds(first), again.holds(second)) == (False, True)
    assert not Sessions(tmp_path / "sessions.json", "another").holds(second)


def test_who_guesses_waits_longer_and_longer_and_nobody_else_does():
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
