"""The output of `flowloom up` when it is ready."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flowloom.errors import RunError
from flowloom.server.serve import _addresses, _kept_token
from flowloom.server.settings import Settings
from tests.server.conftest import Studio


def test_it_says_what_to_open_and_how_to_stop(studio_at: Callable[..., Studio]) -> None:
    studio = studio_at().start()
    lines = (studio.home / "server.log").read_text().splitlines()
    assert lines[0] == f"studio     {studio.url}"
    assert lines[1].strip() == "Open this address in your browser."
    assert f"home       {studio.home}" in lines
    assert lines[-1] == "stop       Ctrl-C stops the studio; runs continue."


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


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "not a token", "larger than 4,096 bytes"])
def test_a_file_that_is_no_token_is_named_and_nothing_waits_for_it(tmp_path: Path, kind: str):
    path = tmp_path / ".flowloom" / "token"
    path.parent.mkdir()
    match kind:
        case "a folder":
            path.mkdir()
        case "a FIFO":
            os.mkfifo(path)
        case "not a token":
            path.write_bytes(b"\xff\xfe")
        case _:
            path.write_bytes(b"x" * 5000)
    with pytest.raises(RunError, match=f"token: {kind}"):
        _kept_token(tmp_path)
