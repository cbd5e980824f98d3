"""Images at HTTP(S) addresses."""

from __future__ import annotations

import random
import time

import requests

from flowloom.errors import ImageError

TIMEOUT_S = 20.0
TRIES = 4
MAX_BYTES = 256 * 2**20


def fetch_image(url: str, session: requests.Session) -> bytes:
    """The body at `url`, tried again after passing faults with growing pauses.

    Raises:
        ImageError: it is not there, too large, or could not be had.
    """
    if not url.startswith(("http://", "https://")):
        raise ImageError(f"{url:.80} is not an http(s) address")
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(random.uniform(0.5, 1.0) * 0.25 * 2**attempt)
        try:
            with session.get(url, timeout=TIMEOUT_S, stream=True) as answer:
                if answer.ok:
                    return _body(answer)
                reason = f"the server answered {answer.status_code}"
                if answer.status_code < 500 and answer.status_code != 429:
                    break
        except requests.RequestException as error:
            reason = f"{error}"
    raise ImageError(f"{url:.200}: {reason}")


def _body(answer: requests.Response) -> bytes:
    body = bytearray()
    for chunk in answer.iter_content(2**16):
        body += chunk
        if len(body) > MAX_BYTES:
            raise ImageError(f"larger than {MAX_BYTES // 2**20} MiB")
    return bytes(body)
