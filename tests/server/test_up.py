"""What `flowloom up` says when it is ready."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flowloom.server.settings import Settings
from flowloom.server.up import _addresses
from tests.server.conftest import Studio


def test_it_says_what_to_open_and_how_to_stop(studio_at: Callable[..., Studio]) -> None:
    studio = studio_at().start()
    told = (studio.home / "server.log").read_text().splitlines()
    assert told[0] == f"studio     {studio.url}"
    assert told[1].strip() == "Open this address in your browser."
    assert f"home       {studio.home}" in told
    assert told[-1] == "stop       Ctrl-C stops the studio; runs go on."


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ["http://127.0.0.1:7/s"]),
        ("::1", ["http://[::1]:7/s"]),
        ("nas.lan", ["http://nas.lan:7/s"]),
        ("0.0.0.0", ["http://127.0.0.1:7/s", "http://192.168.1.5:7/s"]),
        ("::", ["http://[::1]:7/s", "http://192.168.1.5:7/s", "http://[fd00::5]:7/s"]),
    ],
)
def test_every_address_that_a_browser_can_open_is_printed(
    host: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, "192.168.1.5"),
        (socket.AF_INET6, "fe80::1%eth0"),
        (socket.AF_INET6, "fd00::5"),
        (psutil.AF_LINK, "00:11:22:33:44:55"),
    ]
    found = {"eth0": [SimpleNamespace(family=family, address=number) for family, number in numbers]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    assert _addresses(Settings(Path(), host=host, port=7, path="/s")) == expected
