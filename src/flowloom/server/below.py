"""The studio below a path of a host that shows others as well, such as https://example.org/studio/."""

from __future__ import annotations

import argparse
import re

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PATH = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


def below(text: str) -> str:
    """A path as `flowloom up` is told it, without a slash at its end; empty: a host name of its own.

    Raises:
        ArgumentTypeError: it is none.
    """
    path = text.rstrip("/")
    if path and not _PATH.fullmatch(path):
        raise argparse.ArgumentTypeError(f"write it as /studio, of letters, digits and dashes, not {text!r}")
    return path


class Below:
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
                place = headers.get("location", "")
                if place.startswith("/"):
                    headers["location"] = f"{self.path}{place}"
            await send(message)

        await self.app(scope, receive, send_below)
