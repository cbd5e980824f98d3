"""The studio's pages: served from one port with the API, kept for as long as they may be."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flowloom.server import pages
from flowloom.server.app import create_app
from flowloom.server.settings import Settings

ROOT = Path(__file__).parents[2]
SCRIPT = "self.x=[1,2]"
PAGE = f'<!doctype html><script src="/a.js" async=""></script><script>{SCRIPT}</script><p>runs</p>'
HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A static export in small."""
    folder = tmp_path / "static"
    for name, text in {
        "index.html": "<!doctype html><p>home</p>",
        "404.html": "<!doctype html><p>nothing here</p>",
        "runs/index.html": PAGE,
        "_next/static/chunks/a1.js": "let a = 1;",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "secret.html").write_text("not a page")
    return folder


@pytest.fixture
def web(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A studio with these pages, on loopback."""
    monkeypatch.setattr(pages.Pages.__init__, "__defaults__", ("", export))
    app = create_app(Settings(tmp_path / "home"))
    with TestClient(app, base_url="http://127.0.0.1", follow_redirects=False) as client:
        yield client


def test_pages_and_api_share_a_port(web: TestClient):
    assert "home" in web.get("/").text
    assert "runs" in web.get("/runs/").text
    assert web.get("/api/health").json()["version"]


def test_an_unknown_address_is_a_page_for_people_and_a_problem_for_scripts(web: TestClient):
    page = web.get("/nowhere/")
    assert page.status_code == 404
    assert "nothing here" in page.text
    problem = web.get("/api/nowhere")
    assert problem.status_code == 404
    assert problem.headers["content-type"] == "application/problem+json"
    assert web.post("/runs/").status_code == 405
    assert web.delete("/api/health").status_code == 405


def test_an_address_without_its_slash_finds_the_page_and_keeps_the_query(web: TestClient):
    answer = web.get("/runs?id=fox")
    assert answer.status_code == 308
    assert answer.headers["location"] == "/runs/?id=fox"


def test_hashed_files_are_cached_and_pages_requested_again(web: TestClient):
    assert "immutable" in web.get("/_next/static/chunks/a1.js").headers["cache-control"]
    page = web.get("/runs/")
    assert page.headers["cache-control"] == "no-cache"
    again = web.get("/runs/", headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304
    assert again.text == ""


def test_text_is_sent_compressed_to_clients_that_accept_it(web: TestClient):
    packed = web.get("/runs/", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["content-type"].startswith("text/html")
    plain = web.get("/runs/", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert packed.text == plain.text == PAGE
    assert packed.headers["etag"] != plain.headers["etag"]


def test_only_the_inline_scripts_of_the_page_itself_may_run(web: TestClient):
    policy = web.get("/runs/").headers["content-security-policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert scripts == f"script-src 'self' 'sha256-{HASH}'"
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("path", ["/../secret.html", "/%2e%2e/secret.html", "/..%2fsecret.html", "/runs/%00"])
def test_nothing_outside_of_the_export_is_served(web: TestClient, path: str):
    answer = web.get(path)
    assert answer.status_code in (403, 404)
    assert "not a page" not in answer.text


def test_without_pages_the_studio_says_how_to_build_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages.Pages.__init__, "__defaults__", (tmp_path / "static",))
    app = create_app(Settings(tmp_path / "home"))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        text = client.get("/").text
        commands = re.findall("<code>(.*?)</code>", text)
        assert commands == [".venv/bin/python frontend/build.py", "./loom up"]
        assert (ROOT / "frontend" / "build.py").is_file()
        usage = subprocess.run([ROOT / "loom", "--help"], capture_output=True, text=True, check=False)
        assert "./loom up" in usage.stdout + usage.stderr
        assert client.get("/api/health").status_code == 200
