"""Images at HTTP(S) addresses."""

from __future__ import annotations

import random
import time

import requests
import urllib3
from requests.adapters import HTTPAdapter

from flowloom.errors import ImageError

TIMEOUT_S = 20.0
"""To connect, and between two pieces of an answer."""
DEADLINE_S = 60.0
"""For one image with all tries: nobody waits longer for a server that drips."""
TRIES = 4
MAX_BYTES = 256 * 2**20
MAX_REDIRECTS = 5


class _Passing(Exception):
    """A fault that may be gone at the next try."""


def open_session(connections: int) -> requests.Session:
    """A session for so many threads at a time; it follows few redirects, and to HTTP(S) only."""
    session = requests.Session()
    session.max_redirects = MAX_REDIRECTS
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(pool_connections=connections, pool_maxsize=connections))
    return session


def public_part(address: str) -> str:
    """`address` without what may be secret in it: the user's name and password, the query with its signature."""
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def fetch_image(address: str, session: requests.Session) -> bytes:
    """The body at `address`, tried again after passing faults with growing pauses.

    Raises:
        ImageError: it is not there, too large, or could not be had in time. The message tells no secrets.
    """
    deadline = time.monotonic() + DEADLINE_S
    for attempt in range(1, TRIES + 1):
        try:
            return _fetch(address, session, deadline)
        except _Passing as error:
            pause = random.uniform(0.5, 1.0) * 0.25 * 2**attempt
            if attempt == TRIES or time.monotonic() + pause > deadline:
                raise ImageError(f"{error}, {attempt} times") from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _fetch(address: str, session: requests.Session, deadline: float) -> bytes:
    try:
        with session.get(address, timeout=TIMEOUT_S, stream=True) as answer:
            if answer.status_code >= 500 or answer.status_code in (408, 429):
                raise _Passing(f"the server answered {answer.status_code}")
            if not answer.ok:
                raise ImageError(f"the server answered {answer.status_code}")
            return _body(answer.raw, deadline)
    except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise _Passing("no connection, or no answer in time") from error
    except urllib3.exceptions.ProtocolError as error:
        raise _Passing("the connection broke off") from error
    except requests.TooManyRedirects as error:
        raise ImageError(f"more than {MAX_REDIRECTS} redirects") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # Their own texts quote the address with its query.
        raise ImageError(f"not to be had over http(s) ({type(error).__name__})") from error


def _body(answer: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
    body = bytearray()
    # read1 returns what has come so far; requests' own way of reading would wait for a full piece.
    while piece := answer.read1(2**16, decode_content=True):
        body += piece
        if len(body) > MAX_BYTES:
            raise ImageError(f"larger than {MAX_BYTES // 2**20} MiB")
        if time.monotonic() > deadline:
            raise ImageError(f"not here after {DEADLINE_S:g} s")
    return bytes(body)
