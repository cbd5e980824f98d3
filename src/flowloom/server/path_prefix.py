"""The studio below a path of a host that shows others as well, such as https://example.org/studio/."""

from __future__ import annotations

import argparse
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


def path_prefix(text: str) -> str:
    """A path as `flowloom up` is told it, without a slash at its end; empty: a host name of its own.

    Raises:
        ArgumentTypeError: it is none, or the studio has one of that name itself: where a proxy took the path
            away, nobody could tell them apart.
    """
    path = text.rstrip("/")
    if path and not _PATH.fullmatch(path):
        raise argparse.ArgumentTypeError(f"write it as /studio, of letters, digits and dashes, not {text!r}")
    if path and _is_own(path):
        raise argparse.ArgumentTypeError(
            f"{path} is a path of its own in the studio; choose another, /studio say"
        )
    return path


def _is_own(path: str) -> bool:
    from flowloom.server import pages  # not for a command line that only asks for help

    return f"{path}/".startswith("/api/") or (pages.STATIC / path[1:]).exists()


class PathPrefix:
    """In front of everything: takes `path` away, unless the proxy did; puts it before Locations."""

    def __init__(self, app: ASGIApp, path: str):
        self.app, self.path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what lies below the path, and what came without it."""
        if scope["type"] != "http" or not self.path:
            await self.app(scope, receive, send)
            return
        if scope["path"] == self.path:
            await RedirectResponse(f"{self.path}/", 308)(scope, receive, send)
            return
        if scope["path"].startswith(f"{self.path}/"):
            num = len(self.path)
            scope = {**scope, "path": scope["path"][num:], "raw_path": scope.get("raw_path", b"")[num:]}

        async def send_below(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                place = _within(headers.get("location", ""), Headers(scope=scope).get("host", ""))
                if place.startswith("/"):
                    headers["location"] = f"{self.path}{place}"
            await send(message)

        await self.app(scope, receive, send_below)


def _within(place: str, host: str) -> str:
    """A Location without the host, where that is the one asked: Starlette's own name it, and a scheme too."""
    for start in (f"http://{host}/", f"https://{host}/"):
        if place.startswith(start):
            return place[len(start) - 1 :]
    return place
