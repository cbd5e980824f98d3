"""Sign-in sessions, and throttling of wrong tokens. Sessions end on sign-out or after 30 days."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from flowloom.files import read_plain, write_json

GOOD_FOR_S = 30 * 86_400
MOST = 1000
FREE_TRIES = 10
"""Different wrong tokens that an address may send before it has to wait."""
LONGEST_WAIT_S = 60.0
FORGOTTEN_AFTER_S = 900.0
MOST_ADDRESSES = 10_000


class _Saved(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)
    token: str
    ends: dict[str, float]


class Sessions:
    """Sessions by the digest of their cookie, saved in a file without cookies and token."""

    def __init__(self, path: Path, token: str | None):
        self._path, self._lock = path, threading.Lock()
        self._token = hmac.new((token or "").encode(), b"flowloom sessions", hashlib.sha256).hexdigest()
        self._ends: dict[str, float] = {}
        with suppress(OSError, ValidationError):
            kept = _Saved.model_validate_json(read_plain(path))
            if hmac.compare_digest(kept.token, self._token):
                self._ends = {name: end for name, end in kept.ends.items() if end > time.time()}

    def begin(self) -> str:
        """Start a session and return its cookie."""
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            alive = sorted((end, name) for name, end in self._ends.items() if end > time.time())[1 - MOST :]
            self._ends = {name: end for end, name in alive} | {_digest(cookie): time.time() + GOOD_FOR_S}
            self._write()
        return cookie

    def holds(self, cookie: str) -> bool:
        """True if the cookie belongs to an active session."""
        return self._ends.get(_digest(cookie), 0.0) > time.time()

    def end(self, cookie: str) -> None:
        """End the session of a cookie."""
        with self._lock:
            if self._ends.pop(_digest(cookie), None) is not None:
                self._write()

    def _write(self) -> None:
        # On a full disk, sessions last as long as this process.
        with suppress(OSError):
            write_json(self._path, {"token": self._token, "ends": self._ends})


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).hexdigest()


class Tries:
    """Wrong tokens by address: each new guess makes that address wait longer."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, tuple[set[str], float, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds until a token from this address is checked again."""
        _, _, until = self._failed.get(address, (set[str](), 0.0, 0.0))
        return max(0.0, until - time.monotonic())

    def failed(self, address: str, given: str) -> None:
        """Count a wrong token. The same one again, as from a script, is no new guess."""
        now = time.monotonic()
        seen, last, until = self._failed.pop(address, (set[str](), now, 0.0))
        if now - last > FORGOTTEN_AFTER_S:
            seen, until = set[str](), 0.0
        if (digest := _digest(given)) not in seen and len(seen) < 100:
            seen.add(digest)
            over = len(seen) - FREE_TRIES
            until = now + min(LONGEST_WAIT_S, 2.0 ** min(over, 10)) if over >= 0 else 0.0
        elif len(seen) >= 100:
            until = now + LONGEST_WAIT_S
        self._failed[address] = seen, now, until
        while len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)
