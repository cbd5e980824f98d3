"""The studio's pages: a static export of `frontend/`, served beside the API from the same port.

Files below `_next/static/` have a hash in their name, and browsers keep them for a year. All others are
requested each time, with the response 304 if they did not change. The inline scripts of a page are allowed
by their hashes, and nothing else that is inline. The export is built with MARK before all its addresses;
the studio's path prefix replaces it when a file is served.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import mimetypes
import re
from functools import lru_cache
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from flowloom.server.allowed_roots import inside
from flowloom.server.problems import NoSuchFile
from flowloom.server.security import POLICY

STATIC = Path(__file__).parent / "static"
MARK = b"/__flowloom__"
"""As `frontend/src/lib/base-path.ts` has it."""
_FOREVER = "public, max-age=31536000, immutable"
_MARKED = {".html", ".js", ".css", ".txt", ".json", ".svg"}
_INLINE = re.compile(rb"<script(?:\s[^>]*)?>(.*?)</script>", re.DOTALL)
_UNBUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Flowloom</title>
<style>body{font:16px/1.6 system-ui;max-width:38rem;margin:15vh auto;padding:0 1rem}</style>
<h1>The studio is running, but its pages are not built.</h1>
<p>In the checkout, run <code>.venv/bin/python frontend/build.py</code> once: it installs its own Node
and takes about two minutes. Then reload this page; no restart is needed. <code>./loom up</code> builds them,
too.</p>
<p>Everything on the pages is also available in the API: <a href="api/openapi.json">/api/openapi.json</a>.</p>
</html>"""


class Pages:
    """An ASGI app for paths without a route: it serves the files in `folder`."""

    def __init__(self, below: str = "", folder: Path = STATIC):
        self.folder, self.below = folder, below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond with a page, one of its files, or 404."""
        if scope["type"] != "http":
            raise HTTPException(404)
        if scope["path"].startswith("/api/") or scope["path"] == "/api":
            raise HTTPException(404)
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"allow": "GET, HEAD"})
        response = await run_in_threadpool(self._answer, scope)
        await response(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if not (self.folder / "index.html").is_file():
            return HTMLResponse(_UNBUILT, headers={"cache-control": "no-cache"})
        try:
            path = inside(self.folder, scope["path"].strip("/"))
        except NoSuchFile:
            path = self.folder / "404.html"
        if path.is_dir() and path != self.folder.resolve() and not scope["path"].endswith("/"):
            query = scope["query_string"].decode("latin-1")
            # One slash before it: two would name a host.
            place = f"/{path.relative_to(self.folder.resolve()).as_posix()}/"
            return RedirectResponse(f"{place}{'?' * bool(query)}{query}", 308)
        page = path / "index.html" if path.is_dir() else path
        if page.is_file() and page.suffix != ".gz" and page.name != "404.html":
            return self._file(page, Headers(scope=scope), "_next/static/" in scope["path"])
        return self._file(self.folder / "404.html", Headers(scope=scope), is_hashed=False, status=404)

    def _file(self, path: Path, asked: Headers, is_hashed: bool, status: int = 200) -> Response:
        changed = path.stat().st_mtime_ns
        served = _served(path, changed, self.below)
        packed = path.with_name(f"{path.name}.gz")
        is_packed = "gzip" in asked.get("accept-encoding", "") and (served is not None or packed.is_file())
        headers = {
            "cache-control": _FOREVER if is_hashed else "no-cache",
            "etag": f'"{changed:x}-{path.stat().st_size:x}{self.below}{"-gz" * is_packed}"',
            "vary": "accept-encoding",
        }
        if path.suffix == ".html":
            headers["content-security-policy"] = _policy(path, changed, self.below)
        if status == 200 and asked.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        if is_packed:
            headers["content-encoding"] = "gzip"
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if served is None:
            return FileResponse(packed if is_packed else path, status, headers, media_type=kind)
        content = served if is_packed else gzip.decompress(served)
        return Response(content, status, headers, media_type=kind)


@lru_cache(maxsize=256)
def _served(path: Path, changed_ns: int, below: str) -> bytes | None:  # noqa: ARG001 -- see _policy
    """The compressed content of a file that contains the mark, with the prefix in its place; else None."""
    content = path.read_bytes() if path.suffix in _MARKED else b""
    return gzip.compress(content.replace(MARK, below.encode()), mtime=0) if MARK in content else None


@lru_cache(maxsize=64)
def _policy(path: Path, changed_ns: int, below: str) -> str:
    """The studio's content security policy plus the hashes of this page's inline scripts.

    `changed_ns` is part of the cache key.
    """
    served = _served(path, changed_ns, below)
    content = path.read_bytes() if served is None else gzip.decompress(served)
    hashes = [hashlib.sha256(script).digest() for script in _INLINE.findall(content) if script]
    allowed = " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in dict.fromkeys(hashes))
    return f"{POLICY}; script-src 'self' {allowed}".rstrip()
