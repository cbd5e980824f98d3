"""Access control: requests need a loopback name or the token, and must not come from other sites' pages.

- Without a token, only requests for a loopback name are answered. That excludes pages elsewhere that point
  their own name at 127.0.0.1 (DNS rebinding), and a reverse proxy that was set up without a token.
- With a token, every request must carry it: scripts as a bearer header, browsers as a cookie (HttpOnly,
  SameSite=Strict, one for each sign-in). Clients that send many wrong tokens have to wait.
- Bodies are limited to BODY_BYTES and BODY_WITHIN_S, except uploads, which have separate limits.
- A changing request made by another site is refused, with or without the token. So is a reading one,
  unless the user follows a link: reading can make the studio send requests.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flowloom.server.problems import Forbidden, NotSignedIn, ServiceError, TooManyTries, answer
from flowloom.server.sessions import Sessions, Tries
from flowloom.server.settings import LOCAL_NAMES

COOKIE = "flowloom_session"
BODY_BYTES = 4 * 2**20
BODY_WITHIN_S = 60.0
_UPLOADS = re.compile(r"/api/datasets/[^/]+/uploads(/[^/]+)?")
_OPEN = {"/api/health", "/api/session"}
_READING = {"GET", "HEAD", "OPTIONS"}
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "style-src 'self' 'unsafe-inline'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
ANSWER_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
"""Policy of everything below /api/: no file opened from there runs with the pages' rights."""
_HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def is_token(given: str, token: str) -> bool:
    """True if `given` is the token, compared in constant time."""
    return hmac.compare_digest(given.encode(), token.encode())


class Guard:
    """ASGI middleware that checks access and adds the security headers."""

    def __init__(self, app: ASGIApp, token: str | None, sessions: Sessions, tries: Tries):
        self.app, self.token, self.sessions, self.tries = app, token, sessions, tries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        num_bytes, is_complete = 0, False
        is_upload = bool(_UPLOADS.fullmatch(scope["path"]))
        until = asyncio.get_running_loop().time() + BODY_WITHIN_S

        def note_use() -> None:
            # Open pages poll without a user; a change is made by one.
            if scope["method"] not in _READING:
                scope["app"].state.used_at = time.monotonic()

        async def receive_limited() -> Message:
            nonlocal num_bytes, is_complete
            # FastAPI passes on only HTTPException while it reads a body.
            try:
                async with asyncio.timeout_at(None if is_upload or is_complete else until):
                    message = await receive()
            except TimeoutError:
                problem = f"The request's body did not arrive within {BODY_WITHIN_S:.0f} s."
                raise HTTPException(408, problem) from None
            note_use()
            is_complete = not message.get("more_body", False)
            num_bytes += len(message.get("body", b""))
            if num_bytes > BODY_BYTES and not is_upload:
                raise HTTPException(413, f"A body may have at most {BODY_BYTES:,} bytes.")
            return message

        refusal = self._refusal(scope, Headers(scope=scope))
        if refusal is None:
            note_use()
        await (answer(refusal) if refusal else self.app)(scope, receive_limited, _with_headers(scope, send))

    def _refusal(self, scope: Scope, headers: Headers) -> ServiceError | None:
        if scope["method"] not in _READING and not _is_same_origin(headers):
            return Forbidden("Another site made this request.", "Use the studio's own pages, or a script.")
        if _is_api(scope) and _is_embedded_elsewhere(headers):
            return Forbidden(
                "Another site embeds this address.", "Open it directly, or use the studio's own pages."
            )
        if self.token is None:
            host = _name_of(headers.get("host", ""))
            if host in LOCAL_NAMES:
                return None
            hint = "To use another name, for example through a proxy, start the studio with a token."
            return Forbidden(f"{host!r} is not a loopback name of this machine.", hint)
        is_open = scope["path"] in _OPEN or not _is_api(scope)
        if is_open or self.sessions.holds(cookie_of(headers)):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return NotSignedIn()
        return refusal_of(given.strip(), self.token, address_of(scope), self.tries)


def refusal_of(given: str, token: str, address: str, tries: Tries) -> ServiceError | None:
    """The error for a wrong token, or None if it is right."""
    if wait_s := tries.wait_s(address):
        return TooManyTries(wait_s)
    if is_token(given, token):
        return None
    tries.failed(address, given)
    return NotSignedIn()


def address_of(scope: Scope) -> str:
    """The client's address; for IPv6 its /64 network, which belongs to one client."""
    host = (scope.get("client") or ("", 0))[0]
    return ":".join(host.split(":")[:4]) if ":" in host else host


def cookie_of(headers: Headers) -> str:
    """The content of the session cookie, or an empty string."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _with_headers(scope: Scope, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            is_page = not _is_api(scope)
            headers.setdefault("content-security-policy", POLICY if is_page else ANSWER_POLICY)
            if not is_page:
                headers.setdefault("cache-control", "no-store")
        await send(message)

    return send_with_headers


def _is_api(scope: Scope) -> bool:
    return scope["path"].startswith("/api/")


def _is_embedded_elsewhere(headers: Headers) -> bool:
    """True if the browser reports an embedded request by a page of another site, not a followed link."""
    site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
    return site not in ("same-origin", "none") and mode != "navigate"


def _is_same_origin(headers: Headers) -> bool:
    """False if the browser reports that a page of another site made the request."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == headers.get("host")


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
