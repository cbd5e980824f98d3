"""Download a file completely or not at all: resumed after errors, verified, then renamed.

NAME.part has the bytes so far, NAME.part.json the URL and metadata of their file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flowloom.errors import DiskFullError, SourceError, Unavailable
from flowloom.files import sync, write_json
from flowloom.locks import try_lock
from flowloom.storage.base import shown
from flowloom.storage.downloads.request import DownloadClient, Facts, get
from flowloom.storage.retry import with_retries

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

CHUNK = 2**20
SPARE = 2**26
"""Bytes to leave free on the disk."""
WAITS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds before each retry after an attempt without progress."""


@dataclass(frozen=True)
class Watch:
    """Callbacks of a download."""

    on_bytes: Callable[[int, int | None], None]
    """Bytes so far, and in total."""
    raise_if_stopped: Callable[[], None]
    """Raises its own exception to end the download, which can be resumed."""
    on_phase: Callable[[str], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Fetched:
    """A downloaded file."""

    sha256: str
    size: int
    is_checked: bool
    """True if its expected SHA-256 was known."""


def fetch(client: DownloadClient, url: str, target: Path, watch: Watch, sha256: str | None = None) -> Fetched:
    """Download `url` to `target`, replacing an existing file.

    Args:
        sha256: expected, in lower case; None: the one from the hub, if any.

    Raises:
        SourceError: the file cannot be downloaded, or has another SHA-256.
        DiskFullError: the disk has no room for it.
    """
    part = _Part(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with part.path.open("ab") as file:
        _lock(file, target)
        facts = part.read_note(url)
        if part.size() == 0 or facts.size != part.size():
            facts = _fill(client, url, part, file, watch)
        file.flush()
        os.fsync(file.fileno())
        expected = sha256 or facts.sha256
        watch.on_phase("checking")
        actual = sha256_of(part.path, watch)
        if expected and actual != expected:
            part.discard()
            raise SourceError(
                f"{shown(url)}: the downloaded file has SHA-256 {actual[:12]}... instead of "
                f"{expected[:12]}..., and was deleted. Try again, or correct the SHA-256."
            )
        size = part.size()
        part.finish()
    return Fetched(actual, size, expected is not None)


def facts_of(client: DownloadClient, url: str, watch: Watch) -> Facts:
    """Metadata of the file at `url`, without a download.

    Raises:
        SourceError: as `fetch`.
    """

    def attempt() -> Facts:
        response, facts = get(client, url, {"Range": "bytes=0-0"})
        response.close()
        return facts

    return _with_retries(attempt, lambda: 0, watch)


def unfinished_size(target: Path) -> int:
    """Bytes of `target` from an incomplete download."""
    part = _Part(target).path
    return part.stat().st_size if part.exists() else 0


def already_there(facts: Facts, target: Path, watch: Watch) -> str | None:
    """The SHA-256 of `target` if it is the file described by `facts`; otherwise None."""
    size, etag = target.stat().st_size, (facts.validator or "").strip('"')
    if facts.size not in (None, size):
        return None
    watch.on_phase("checking")
    if facts.sha256:
        actual = sha256_of(target, watch)
        return actual if actual == facts.sha256 else None
    # The hub's ETag of a small file is its blob hash in git.
    content = target.read_bytes() if size <= CHUNK * 16 else b""
    is_same = etag == hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
    return sha256_of(target, watch) if is_same else None


class _Part:
    """The incomplete file, and the note with its URL and metadata."""

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size

    def read_note(self, url: str) -> Facts:
        """Metadata of the incomplete file; empty if it belongs to another URL."""
        try:
            content = json.loads(self.note.read_bytes())
            return Facts(**content["facts"]) if content["url"] == url else Facts()
        except (OSError, ValueError, KeyError, TypeError):
            return Facts()

    def write_note(self, url: str, facts: Facts) -> None:
        write_json(self.note, {"url": url, "facts": asdict(facts)})

    def discard(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)
        sync(self.target.parent)


def _lock(file: IO[bytes], target: Path) -> None:
    if not try_lock(file):
        raise SourceError(f"{target}: another run is downloading it. Wait for that run.")


def _fill(client: DownloadClient, url: str, part: _Part, file: IO[bytes], watch: Watch) -> Facts:
    """Download the missing bytes, with retries as long as some bytes arrive in between."""
    return _with_retries(lambda: _attempt(client, url, part, file, watch), part.size, watch)


def _with_retries(attempt: Callable[[], Facts], have: Callable[[], int], watch: Watch) -> Facts:
    """The result of `attempt`, retried after temporary errors as long as some of them bring bytes."""
    try:
        return with_retries(attempt, WAITS, lambda seconds: _pause(seconds, watch), have)
    except Unavailable as error:
        tries = len(WAITS) + 1
        raise SourceError(f"{error} Tried {tries} times; resume the run to continue later.") from error


def _pause(seconds: float, watch: Watch) -> bool:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        watch.raise_if_stopped()
        time.sleep(min(0.2, left))
    return True


def _attempt(client: DownloadClient, url: str, part: _Part, file: IO[bytes], watch: Watch) -> Facts:
    """Download over one connection.

    Raises:
        Unavailable: the connection broke; the received bytes are kept.
    """
    noted, have = part.read_note(url), part.size()
    headers = _range(noted, have)
    response, facts = get(client, url, headers)
    with closing(response):
        if response.status == 416 or not _continues(response, noted, facts, have):
            if response.status != 200:
                # The URL has another file now: start from the beginning.
                _cut(file, 0)
                part.write_note(url, Facts())
                raise Unavailable(f"{shown(url)}: changed while it was downloaded.")
            have = 0
        _check_kind(url, part.target, response)
        _cut(file, have)
        check_room(part.target, (facts.size or have) - have)
        part.write_note(url, facts)
        return replace(facts, size=_pour(response, file, have, facts, watch, url))


def _range(noted: Facts, have: int) -> dict[str, str]:
    """Headers that request the rest, if it is certain to be of the same file."""
    if not have:
        return {}
    if noted.sha256:
        return {"Range": f"bytes={have}-"}
    return {"Range": f"bytes={have}-", "If-Range": noted.validator} if noted.validator else {}


def _continues(response: BaseHTTPResponse, noted: Facts, facts: Facts, have: int) -> bool:
    """True if the response continues at the end of the incomplete file."""
    if response.status != 206:
        return False
    starts = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
    same = noted.sha256 == facts.sha256 if noted.sha256 else noted.validator == facts.validator
    return starts and same and (noted.size is None or noted.size == facts.size)


def _cut(file: IO[bytes], size: int) -> None:
    file.flush()
    file.truncate(size)
    file.seek(0, os.SEEK_END)


def _check_kind(url: str, target: Path, response: BaseHTTPResponse) -> None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise SourceError(
            f"{shown(url)}: the server sends it compressed, although the request excludes that."
        )
    kind = response.headers.get("Content-Type", "")
    if kind.startswith("text/html") and target.suffix not in (".html", ".htm"):
        raise SourceError(f"{shown(url)}: a web page instead of a file. Use the URL of the download itself.")


def check_room(target: Path, num_bytes: int) -> None:
    """Check that `num_bytes` more fit on the disk of `target`.

    Raises:
        DiskFullError: they do not fit.
    """
    free = shutil.disk_usage(target.parent).free
    if num_bytes + SPARE > free:
        raise DiskFullError(
            f"{target}: needs {num_bytes / 2**20:,.0f} MiB, but {free / 2**20:,.0f} MiB are free. "
            "Free some disk space, then resume the run."
        )


def _pour(
    response: BaseHTTPResponse, file: IO[bytes], have: int, facts: Facts, watch: Watch, url: str
) -> int:
    """Append the body to the incomplete file; returns its total size."""
    from urllib3.exceptions import HTTPError

    size = have
    try:
        for chunk in response.stream(CHUNK, decode_content=False):
            file.write(chunk)
            size += len(chunk)
            watch.on_bytes(size, facts.size)
            watch.raise_if_stopped()
    except HTTPError:
        raise Unavailable(f"{shown(url)}: the connection broke after {size:,} bytes.") from None
    if facts.size is not None and size != facts.size:
        if size > facts.size:
            _cut(file, 0)
        raise Unavailable(f"{shown(url)}: received {size:,} of {facts.size:,} bytes.")
    return size


def sha256_of(path: Path, watch: Watch) -> str:
    """The SHA-256 of the file at `path`, in lower case."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(8 * CHUNK):
            digest.update(chunk)
            done += len(chunk)
            watch.on_bytes(done, size)
            watch.raise_if_stopped()
    return digest.hexdigest()
