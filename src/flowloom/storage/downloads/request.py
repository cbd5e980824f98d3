"""One request of a download, redirects followed by hand: each of them is a new host to check."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.storage.base import shown
from flowloom.storage.ssrf import Allowed, host_of, origin_of, resolve

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, HTTPConnectionPool

HUB = "https://huggingface.co"
REDIRECTS = 8
TIMEOUT_S = 60.0
CONNECT_S = 15.0
_KEPT = "%/?:@!$&'()*+,;=~[]"
"""Characters that stay in a URL; others, such as spaces and letters with accents, are percent-encoded."""
_MOVED = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Asker:
    """Who asks: what it may reach, and the token that its hub alone is shown."""

    allowed: Allowed = field(default_factory=Allowed)
    hub: str = HUB
    token: str | None = field(default=None, repr=False)

    def hub_url(self, repo: str, name: str, revision: str) -> str:
        """Where the hub has the file `name` of a repository."""
        return f"{self.hub.rstrip('/')}/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"

    def file_url(self, url: str) -> str:
        """`url`, or the file that it is the page of, where it is one of the hub's pages."""
        is_page = origin_of(url)[1] in (origin_of(self.hub)[1], origin_of(HUB)[1])
        return re.sub(r"^([^?#]*?)/blob/", r"\1/resolve/", url) if is_page else url


@dataclass(frozen=True)
class Facts:
    """Metadata of a file before its download."""

    size: int | None = None
    """Bytes of the whole file."""
    sha256: str | None = None
    """From the hub, which stores large files by it."""
    validator: str | None = None
    """A strong ETag or a date: the file is the same as long as this is."""


def ask(asker: Asker, url: str, headers: dict[str, str]) -> tuple[BaseHTTPResponse, Facts]:
    """The answer to GET `url`, 200, 206 or 416 with its body still to be read, and what is known of the file.

    Raises:
        Denied, NotFound, SourceError: another try would not change the answer.
        Unavailable: another try may.
    """
    facts, first = Facts(), url
    for _ in range(REDIRECTS):
        response = _send(asker, url, headers)
        facts = _from_hub(asker, url, response, facts)
        if response.status not in _MOVED:
            break
        response.close()
        location = urljoin(url, response.headers.get("Location", ""))
        if urlsplit(url).scheme == "https" and urlsplit(location).scheme != "https":
            raise SourceError(f"{shown(first)}: leads from https to {shown(location)}, which is not safe.")
        url = location
    else:
        raise SourceError(f"{shown(first)}: leads on and on, {REDIRECTS} times.")
    if response.status in (200, 206, 416):
        return response, _completed(response, facts)
    response.close()
    raise _refusal(asker, first, response)


def _send(asker: Asker, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
    from urllib3 import exceptions

    host, port = host_of(url)
    parts = urlsplit(url)
    sent = {"user-agent": "flowloom", "accept-encoding": "identity", "host": parts.netloc, **headers}
    if asker.token and origin_of(url) == origin_of(asker.hub):
        sent["authorization"] = f"Bearer {asker.token}"
    target = quote(f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", safe=_KEPT)
    fault = "no connection"
    for address in resolve(host, port, asker.allowed):
        pool = _pool(parts.scheme, host, address, port)
        try:
            return pool.urlopen(
                "GET", target, headers=sent, redirect=False, retries=False, preload_content=False
            )
        except exceptions.NewConnectionError:
            continue  # the host may have another address that answers
        except (exceptions.HTTPError, OSError, ValueError) as error:
            fault = _fault(error)
            break
    raise Unavailable(f"{shown(url)}: {fault}.")


def _pool(scheme: str, host: str, address: str, port: int) -> HTTPConnectionPool:
    import urllib3

    timeout = urllib3.Timeout(connect=CONNECT_S, read=TIMEOUT_S)
    if scheme == "http":
        return urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    # The certificate must be the host's, though the connection is made to the address that was checked.
    return urllib3.HTTPSConnectionPool(
        address, port, timeout=timeout, server_hostname=host, assert_hostname=host
    )


def _from_hub(asker: Asker, url: str, response: BaseHTTPResponse, facts: Facts) -> Facts:
    """Metadata of a large file from the hub's redirect."""
    if origin_of(url) != origin_of(asker.hub):
        return facts
    told = response.headers
    oid = told.get("X-Linked-ETag", "").strip('"')
    size = told.get("X-Linked-Size", "")
    return replace(
        facts,
        sha256=oid if _SHA256.fullmatch(oid) else facts.sha256,
        size=int(size) if size.isdecimal() else facts.size,
    )


def _completed(response: BaseHTTPResponse, facts: Facts) -> Facts:
    told = response.headers
    etag = told.get("ETag", "")
    validator = etag if etag.startswith('"') else told.get("Last-Modified")
    total = told.get("Content-Range", "").rpartition("/")[2] if response.status != 200 else None
    size = told.get("Content-Length", "") if total is None else total
    return replace(facts, size=int(size) if size.isdecimal() else facts.size, validator=validator)


def _refusal(asker: Asker, url: str, response: BaseHTTPResponse) -> SourceError:
    status, where = response.status, shown(url)
    if status in (404, 410):
        return NotFound(f"{where}: the server returned {status}: not found. Correct the URL.")
    if status in (401, 403):
        return Denied(f"{where}: the server returned {status}: access denied. {_way_in(asker, url)}")
    if status >= 500 or status in _PASSING:
        asked = response.headers.get("Retry-After", "")
        after = min(float(asked), 120.0) if asked.isdecimal() else 0.0
        return Unavailable(f"{where}: the server returned {status}.", retry_after_s=after)
    return SourceError(f"{where}: the server returned {status}.")


def _way_in(asker: Asker, url: str) -> str:
    if origin_of(url) != origin_of(asker.hub):
        return "Is the URL still valid and public?"
    if asker.token is None:
        return "Set HF_TOKEN, with a token that may read this repository."
    return "Accept the model's terms on its page, or set a HF_TOKEN that may read it."


def _fault(error: Exception) -> str:
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        return "its certificate or TLS is not accepted"
    return (
        "timed out" if isinstance(error, exceptions.TimeoutError | TimeoutError) else "the connection broke"
    )
