"""A path prefix for the studio behind a reverse proxy, such as https://example.org/studio/."""

from __future__ import annotations

import argparse
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


def path_prefix(text: str) -> str:
    """Parse the path prefix of `flowloom up`, without a trailing slash. Empty: none.

    Raises:
        ArgumentTypeError: it is invalid, or a path of the studio: if a proxy strips the prefix, the two
            would be ambiguous.
    """
    path = text.rstrip("/")
    if path and not _PATH.fullmatch(path):
        raise argparse.ArgumentTypeError(f"write it as /studio, of letters, digits and dashes, not {text!r}")
    if path and _is_own(path):
        raise argparse.ArgumentTypeError(
            f"{path} is a path of the studio itself: choose another, such as /studio"
        )
    return path


def _is_own(path: str) -> bool:
    from flowloom.server import pages  # not needed for --help

    return f"{path}/".startswith("/api/") or (pages.STATIC / path[1:]).exists()


class PathPrefix:
    """ASGI middleware that strips the prefix, unless the proxy did, and adds it to Location headers."""

    def __init__(self, app: ASGIApp, path: str):
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests with the prefix, stripped, and requests without it."""
        if scope["type"] != "http" or not self.path:
            await self.app(scope, receive, send)
            return
        if scope["path"] == self.path:
            await RedirectResponse(f"{self.path}/", 308)(scope, receive, send)
            return
        if scope["path"].startswith(f"{self.path}/"):
            num = len(self.path)
            scope = {**scope, "path": scope["path"][num:], "raw_path": scope.get("raw_path", b"")[num:]}

        async def send_with_prefix(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                location = _without_host(headers.get("location", ""), Headers(scope=scope).get("host", ""))
                if location.startswith("/"):
                    headers["location"] = f"{self.path}{location}"
            await send(message)

        await self.app(scope, receive, send_with_prefix)


def _without_host(location: str, host: str) -> str:
    """A Location without scheme and host if it is ours: Starlette's redirects contain them."""
    for start in (f"http://{host}/", f"https://{host}/"):
        if location.startswith(start):
            return location[len(start) - 1 :]
    return location
