"""The interface of stores, which hold images and caches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import AfterValidator, Field
from typing_extensions import Buffer

from flowloom.errors import Denied, NotFound, SourceError, Unavailable
from flowloom.printable import printable
from flowloom.schema import Section, ui

__all__ = [
    "Denied",
    "NotFound",
    "ObjectInfo",
    "OnState",
    "Source",
    "SourceError",
    "StorageSection",
    "StoreState",
    "Unavailable",
    "shown",
]

_ENDPOINT = re.compile(r"https?://[^@\s]+")


def _fit_endpoint(address: str) -> str:
    if not _ENDPOINT.fullmatch(address):
        # Messages show the URL without its password, so this one must say what is wrong.
        raise ValueError("write http(s)://HOST with no name or password in it")
    return address


class StorageSection(Section):
    """Access to object stores. Keys come from the environment (AWS_ACCESS_KEY_ID ...) or a profile file."""

    endpoint: (
        Annotated[
            str,
            AfterValidator(_fit_endpoint),
            Field(json_schema_extra={"pattern": f"^{_ENDPOINT.pattern}$"}),
        ]
        | None
    ) = None
    """S3: URL of the store; null: AWS_ENDPOINT_URL, that of the profile, or Amazon."""
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """S3: region; null: AWS_REGION, that of the profile, or us-east-1."""
    addressing: Literal["path", "virtual"] = "path"
    """S3: bucket in the path of the URL, or in the host name (also in `endpoint`)."""
    profile: str | None = None
    """S3: profile in ~/.aws/credentials; null: keys of the environment, AWS_PROFILE, or `default`."""
    anonymous: bool = False
    """Send no keys, for public buckets."""
    connections: Annotated[int, Field(ge=1)] = 64
    """Maximum number of concurrent requests per store."""
    read_ahead_mib: Annotated[float, Field(gt=0), ui(unit="MiB")] = 256.0
    """Memory for prefetched data."""
    tries: Annotated[int, Field(ge=1)] = 4
    """Number of attempts of a read before the store is pinged, and again if it responds."""
    timeout_s: Annotated[float, Field(gt=0), ui(unit="s")] = 20.0
    """Time without data after which a read is retried."""
    patience_minutes: Annotated[float, Field(ge=0), ui(unit="minutes")] = 60.0
    """Maximum time to wait for a store that is down or denies all access. Then the run saves a checkpoint and
    ends; rows with URLs of a web server are skipped instead."""
    cache_dir: str | None = None
    """Folder on a fast disk for copies of data that was read; null: none."""
    cache_gib: Annotated[float, Field(gt=0), ui(unit="GiB")] = 50.0
    """Maximum size of that folder; the least recently used files are deleted first."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Metadata of an object in a store."""

    name: str
    """Relative to the URL of the source."""
    size: int
    """Bytes."""
    etag: str | None
    """Changes with the content; null if the store has none."""
    modified: datetime | None


@dataclass(frozen=True, slots=True)
class StoreState:
    """A store went down or came back, or started or stopped to deny access."""

    store: str
    is_up: bool
    reason: str
    """Why it is considered down."""
    seconds: float
    """Time since it went down."""
    denies: bool = False
    """It responds, but denies access."""

    def __str__(self) -> str:
        if self.denies and self.is_up:
            return f"{self.store} grants access again after {self.seconds:.0f} s."
        if self.denies:
            return f"{self.store} denies access ({self.reason}); reading waits until the keys are renewed."
        if self.is_up:
            return f"{self.store} is back after {self.seconds:.0f} s."
        return f"{self.store} is down ({self.reason}); reading waits for it."


OnState = Callable[[StoreState], None]
"""Called from the thread of the event loop."""


class Source(Protocol):
    """Objects by name below a URL. Thread-safe.

    Raises:
        NotFound, Denied, Unavailable, SourceError: from every method.
    """

    root: str
    """The URL for messages, without secrets."""

    def read(self, name: str) -> bytes:
        """The content of an object."""
        ...

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`; fewer at the end of the object."""
        ...

    def read_buffer(self, name: str, start: int, length: int) -> Buffer:
        """As `read_range`, without a copy out of the client's memory, for large parts."""
        ...

    def stat(self, name: str) -> ObjectInfo:
        """Size and etag of an object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects in the folder `prefix`, by name."""
        ...

    def write(self, name: str, content: bytes | Path) -> None:
        """Write `content`, or the file at that path, atomically."""
        ...

    def delete(self, name: str) -> None:
        """Delete an object, if it exists."""
        ...


def scheme_of(url: str) -> str:
    """The scheme of `url` in lower case; "" for a path."""
    return url.partition("://")[0].lower() if "://" in url else ""


def shown(url: str) -> str:
    """`url` for messages and logs, without a password or a signature."""
    safe = printable(url)
    # `printable` finds URLs in sentences, which end at a space; this one may contain spaces.
    return safe.partition("?")[0].partition("#")[0] if scheme_of(url).startswith("http") else safe
