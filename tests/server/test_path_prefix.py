"""The studio below a path of a host, whether the proxy takes the path away or leaves it."""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.responses import RedirectResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from flowloom.server import pages
from flowloom.server.app import create_app
from flowloom.server.path_prefix import PathPrefix, path_prefix
from flowloom.server.settings import Settings
from tests.server.conftest import Studio

TOKEN = "a-token-for-tests"
SCRIPT = 'self.base="/__flowloom__/x"'
PAGE = f'<!doctype html><script src="/__flowloom__/_next/static/a.js"></script><script>{SCRIPT}</script>'


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A static export in small, as `frontend/build.py` leaves it."""
    folder = tmp_path / "static"
    for name, text in {
        "index.html": PAGE,
        "404.html": "<!doctype html>nothing here",
        "runs/index.html": PAGE,
        "_next/static/a.js": 'let base="/__flowloom__";fetch(base+"/api/runs")',
        "_next/static/b.js": "let b = 1;",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "_next/static/b.js.gz").write_bytes(gzip.compress(b"let b = 1;"))
    return folder


@pytest.fixture
def web(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TestClient]]:
    """`web("/studio")`: a studio with these pages below that path."""
    monkeypatch.setattr(pages.Pages.__init__, "__defaults__", ("", export))
    opened: list[TestClient] = []

    def open_it(path: str, token: str | None = None) -> TestClient:
        app = create_app(Settings(tmp_path / f"home{len(opened)}", path=path, token=token))
        client = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False)
        opened.append(client.__enter__())
        return opened[-1]

    yield open_it
    for client in opened:
        client.__exit__(None, None, None)


@pytest.mark.parametrize("left", ["/studio", ""], ids=["left by the proxy", "taken away by the proxy"])
def test_pages_api_and_places_are_below_the_path(web: Callable[..., TestClient], left: str):
    client = web("/studio")
    page = client.get(f"{left}/runs/")
    assert "/studio/_next/static/a.js" in page.text
    script = client.get(f"{left}/_next/static/a.js")
    assert script.text == 'let base="/studio";fetch(base+"/api/runs")'
    assert script.headers["content-encoding"] == "gzip"
    assert "immutable" in script.headers["cache-control"]
    assert client.get(f"{left}/_next/static/b.js").text == "let b = 1;"
    inline = re.findall(r"<script>(.*?)</script>", page.text)
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inline]
    assert all(f"'sha256-{each}'" in page.headers["content-security-policy"] for each in hashes)
    assert client.get(f"{left}/runs?id=fox").headers["location"] == "/studio/runs/?id=fox"
    assert client.get(f"{left}/api/health").status_code == 200
    client.post(f"{left}/api/datasets", json={"name": "fox"})
    tus = {"tus-resumable": "1.0.0", "upload-length": "9", "upload-metadata": "filename Zm94LnR4dA=="}
    made = client.post(f"{left}/api/datasets/fox/uploads", headers=tus)
    assert made.headers["location"].startswith("/studio/api/datasets/fox/uploads/")
    assert client.head(made.headers["location"], headers=tus).status_code == 200
    assert client.get("/api/openapi.json").json()["servers"] == [{"url": "/studio"}]


@pytest.mark.parametrize("left", ["/studio", ""], ids=["left by the proxy", "taken away by the proxy"])
def test_no_redirect_leads_out_of_the_path(web: Callable[..., TestClient], left: str):
    answer = web("/studio").get(f"{left}/api/health/?a=b")
    assert answer.status_code == 307
    assert answer.headers["location"] == "/studio/api/health?a=b"


def test_a_redirect_to_another_host_is_left_alone():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await RedirectResponse(f"https://{scope['path'][1:]}/x")(scope, receive, send)

    client = TestClient(PathPrefix(app, "/studio"), base_url="http://127.0.0.1", follow_redirects=False)
    for host in ("example.org", "127.0.0.1.example.org"):
        assert client.get(f"/studio/{host}").headers["location"] == f"https://{host}/x"
    assert client.get("/studio/127.0.0.1").headers["location"] == "/studio/x"


@pytest.mark.parametrize("text", ["/api", "/api/runs", "/runs", "/_next", "/_next/static", "/datasets/"])
def test_a_path_that_the_studio_has_itself_is_refused(
    text: str, export: Path, monkeypatch: pytest.MonkeyPatch
):
    # A proxy that takes the path away would make /runs/ of the home page's address, and of the runs'.
    monkeypatch.setattr(pages, "STATIC", export)
    (export / "datasets").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match="of the studio itself"):
        path_prefix(text)


def test_a_path_that_only_begins_like_one_of_the_studio_is_none_of_it(
    export: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pages, "STATIC", export)
    assert [path_prefix(each) for each in ("/runs2", "/apiary", "/tools/runs", "/studio/")] == [
        "/runs2",
        "/apiary",
        "/tools/runs",
        "/studio",
    ]


def test_the_path_itself_leads_to_its_page_and_others_stay_others(web: Callable[..., TestClient]):
    client = web("/studio")
    assert client.get("/studio").headers["location"] == "/studio/"
    assert client.get("/studios/runs/").status_code == 404
    assert client.get("/studio/../api/health").status_code in (200, 404)


def test_without_a_path_nothing_changes(web: Callable[..., TestClient]):
    client = web("")
    page = client.get("/")
    assert 'src="/_next/static/a.js"' in page.text
    assert client.get("/_next/static/a.js").text == 'let base="";fetch(base+"/api/runs")'
    plain = client.get("/_next/static/a.js", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == 'let base="";fetch(base+"/api/runs")'
    assert client.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    assert "servers" not in client.get("/api/openapi.json").json()
    other = web("/studio").get("/", headers={"if-none-match": page.headers["etag"]})
    assert other.status_code == 200, "another path is another page"


def test_the_cookie_is_of_the_path_and_opens_what_is_below_it(web: Callable[..., TestClient]):
    client = web("/studio", TOKEN)
    assert client.get("/studio/api/runs").status_code == 401
    signed_in = client.post("/studio/api/session", json={"token": TOKEN})
    assert "Path=/studio;" in signed_in.headers["set-cookie"]
    assert client.get("/studio/api/runs").status_code == 200
    elsewhere = client.post(
        "/studio/api/datasets", json={"name": "x"}, headers={"origin": "http://example.org"}
    )
    assert elsewhere.status_code == 403
    assert client.delete("/studio/api/session").status_code == 204
    assert client.get("/studio/api/runs").status_code == 401


def test_a_real_studio_prints_its_path_and_lists_addresses_below_it(studio_at: Callable[..., Studio]):
    studio = studio_at("home", "--path", "/tools/studio/").start()
    assert studio.url.endswith("/tools/studio")
    folder = studio.home / "data" / "fox"
    folder.mkdir(parents=True)
    (folder / "a b.png").write_bytes(b"")
    (image,) = studio.get("/api/datasets/fox/images")["images"]
    assert image["url"] == "/tools/studio/api/datasets/fox/images/a%20b.png"


@pytest.mark.parametrize("text", ["studio", "/a b", "/../x", "//host", "/x?y", "/ä", "/a//b", "/.hidden"])
def test_paths_that_are_none_are_refused(text: str):
    with pytest.raises(Exception, match="write it as"):
        path_prefix(text)
