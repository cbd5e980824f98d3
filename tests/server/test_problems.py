"""Refusals of the system are reported precisely: a missing right to read is no full disk."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from fastapi import FastAPI

from flowloom.server import problems

NOBODY = 65534


@contextmanager
def no_root() -> Iterator[None]:
    """Rights do not count for root."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def answer_of_opening(path: Path, mode: str) -> tuple[int, str, str]:
    app = FastAPI()
    problems.install(app)

    @app.get("/")
    async def open_it() -> None:
        path.open(mode).close()

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://studio") as client:
            return await client.get("/")

    with no_root():
        answer = asyncio.run(ask())
    return answer.status_code, answer.json()["type"], answer.json()["hint"]


def test_missing_read_and_write_permissions_are_distinguished():
    # Not below pytest's own folder, which only its user may enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        closed, readable = folder / "closed", folder / "readable"
        for path, mode in ((closed, 0o000), (readable, 0o444), (folder, 0o555)):
            if path != folder:
                path.write_bytes(b"x")
            path.chmod(mode)
        status, type_, hint = answer_of_opening(closed, "rb")
        assert (status, type_) == (403, "urn:flowloom:unreadable")
        assert "read it" in hint
        for path in (readable, folder / "new"):
            status, type_, hint = answer_of_opening(path, "ab")
            assert (status, type_) == (507, "urn:flowloom:unwritable")
            assert "and write" in hint
        folder.chmod(0o700)
