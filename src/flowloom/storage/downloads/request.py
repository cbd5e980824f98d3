"""One request of a download. Redirects are followed here, because each host has to be checked."""

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
"""Characters of a URL that are not percent-encoded."""
_MOVED = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class DownloadClient:
    """The hosts that downloads may reach, and the hub with the token for it alone."""

    allowed: Allowed = field(default_factory=Allowed)
    hub: str = HUB
    token: str | None = field(default=None, repr=False)

    def hub_url(self, repo: str, name: str, revision: str) -> str:
        """URL of the file `name` in a repository of the hub."""
        return f"{self.hub.rstrip('/')}/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"

    def file_url(self, url: str) -> str:
        """URL of the file if `url` is the hub's page about it; otherwise `url`."""
        is_page = origin_of(url)[1] in (origin_of(self.hub)[1], origin_of(HUB)[1])
        return re.sub(r"^([^?#]*?)/blob/", r"\1/resolve/", url) if is_page else url


@dataclass(frozen=True)
class Facts:
    """Metadata of a file before its download."""

    size: int | None = None
    """Bytes of the complete file."""
    sha256: str | None = None
    """From the hub, for large files."""
    validator: str | None = None
    """A strong ETag or a date, which changes with the file."""


def get(client: DownloadClient, url: str, headers: dict[str, str]) -> tuple[BaseHTTPResponse, Facts]:
    """The response to GET `url` (200, 206 or 416) before its body is read, and the metadata of the file.

    Raises:
        Denied, NotFound, SourceError: a retry does not help.
        Unavailable: a retry may succeed.
    """
    facts, first = Facts(), url
    for _ in range(REDIRECTS):
        response = _send(client, url, headers)
        facts = _from_hub(client, url, response, facts)
        if response.status not in _MOVED:
            break
        response.close()
        location = urljoin(url, response.headers.get("Location", ""))
        if urlsplit(url).scheme == "https" and urlsplit(location).scheme != "https":
            raise SourceError(
                f"{shown(first)}: redirects from https to {shown(location)}, which is not encrypted."
            )
        url = location
    else:
        raise SourceError(f"{shown(first)}: more than {REDIRECTS} redirects.")
    if response.status in (200, 206, 416):
        return response, _completed(response, facts)
    response.close()
    raise _refusal(client, first, response)


def _send(client: DownloadClient, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
    from urllib3 import exceptions

    host, port = host_of(url)
    parts = urlsplit(url)
    sent = {"user-agent": "flowloom", "accept-encoding": "identity", "host": parts.netloc, **headers}
    if client.token and origin_of(url) == origin_of(client.hub):
        sent["authorization"] = f"Bearer {client.token}"
    target = quote(f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", safe=_KEPT)
    fault = "no connection"
    for address in resolve(host, port, client.allowed):
        pool = _pool(parts.scheme, host, address, port)
        try:
            return pool.urlopen(
                "GET", target, headers=sent, redirect=False, retries=False, preload_content=False
            )
        except exceptions.NewConnectionError:
            continue  # the host may have another address that responds
        except (exceptions.HTTPError, OSError, ValueError) as error:
            fault = _fault(error)
            break
    raise Unavailable(f"{shown(url)}: {fault}.")


def _pool(scheme: str, host: str, address: str, port: int) -> HTTPConnectionPool:
    import urllib3

    timeout = urllib3.Timeout(connect=CONNECT_S, read=TIMEOUT_S)
    if scheme == "http":
        return urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    # Connect to the checked address, but verify the certificate of the host.
    return urllib3.HTTPSConnectionPool(
        address, port, timeout=timeout, server_hostname=host, assert_hostname=host
    )


def _from_hub(client: DownloadClient, url: str, response: BaseHTTPResponse, facts: Facts) -> Facts:
    """Metadata of a large file from the hub's redirect."""
    if origin_of(url) != origin_of(client.hub):
        return facts
    headers = response.headers
    oid = headers.get("X-Linked-ETag", "").strip('"')
    size = headers.get("X-Linked-Size", "")
    return replace(
        facts,
        sha256=oid if _SHA256.fullmatch(oid) else facts.sha256,
        size=int(size) if size.isdecimal() else facts.size,
    )


def _completed(response: BaseHTTPResponse, facts: Facts) -> Facts:
    headers = response.headers
    etag = headers.get("ETag", "")
    validator = etag if etag.startswith('"') else headers.get("Last-Modified")
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status != 200 else None
    size = headers.get("Content-Length", "") if total is None else total
    return replace(facts, size=int(size) if size.isdecimal() else facts.size, validator=validator)


def _refusal(client: DownloadClient, url: str, response: BaseHTTPResponse) -> SourceError:
    status, where = response.status, shown(url)
    if status in (404, 410):
        return NotFound(f"{where}: the server returned {status}: not found. Correct the URL.")
    if status in (401, 403):
        return Denied(f"{where}: the server returned {status}: access denied. {_access_hint(client, url)}")
    if status >= 500 or status in _PASSING:
        retry_after = response.headers.get("Retry-After", "")
        after = min(float(retry_after), 120.0) if retry_after.isdecimal() else 0.0
        return Unavailable(f"{where}: the server returned {status}.", retry_after_s=after)
    return SourceError(f"{where}: the server returned {status}.")


def _access_hint(client: DownloadClient, url: str) -> str:
    if origin_of(url) != origin_of(client.hub):
        return "Check that the URL is still valid and public."
    if client.token is None:
        return "Set HF_TOKEN to a token with access to this repository."
    return "Accept the model's terms on its page, or set HF_TOKEN to a token with access to it."


def _fault(error: Exception) -> str:
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        return "its certificate or TLS is not accepted"
    return (
        "timed out" if isinstance(error, exceptions.TimeoutError | TimeoutError) else "the connection broke"
    )
