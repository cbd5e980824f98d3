"""Where images and caches come from: one file a store, one face for all of them."""

from __future__ import annotations

import importlib
import logging
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
from flowloom.schema import Section

__all__ = [
    "Denied",
    "Entry",
    "NotFound",
    "OnState",
    "Source",
    "SourceError",
    "StorageSection",
    "StoreState",
    "Unavailable",
    "open_named",
    "open_source",
    "shown",
]

STORES = {
    "": "local",
    "file": "local",
    "http": "http",
    "https": "http",
    "s3": "s3",
    "gs": "gcs",
    "az": "azure",
}
"""The module beside this one for each scheme; it has `open_store(url, storage, on_state)`."""


_ENDPOINT = re.compile(r"https?://[^@\s]+")


def _fit_endpoint(address: str) -> str:
    if not _ENDPOINT.fullmatch(address):
        # The address is shown without its password, so that only this says what is wrong with it.
        raise ValueError("write http(s)://HOST with no name or password in it")
    return address


class StorageSection(Section):
    """How stores are reached. Keys come from the environment (AWS_ACCESS_KEY_ID ...) or a profile file."""

    endpoint: (
        Annotated[
            str,
            AfterValidator(_fit_endpoint),
            Field(json_schema_extra={"pattern": f"^{_ENDPOINT.pattern}$"}),
        ]
        | None
    ) = None
    """S3: address of the store; null: AWS_ENDPOINT_URL, the profile's, or Amazon's own."""
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """S3: region; null: AWS_REGION, the profile's, or us-east-1."""
    addressing: Literal["path", "virtual"] = "path"
    """S3: bucket in the path of the address, or in the host (then `endpoint` has it too)."""
    profile: str | None = None
    """S3: profile of ~/.aws/credentials; null: keys of the environment, else AWS_PROFILE, else `default`."""
    anonymous: bool = False
    """Send no keys: for public buckets."""
    connections: Annotated[int, Field(ge=1)] = 64
    """Requests under way at a time, for each store."""
    read_ahead_mib: Annotated[float, Field(gt=0)] = 256.0
    """Memory for what is read ahead and not yet used."""
    tries: Annotated[int, Field(ge=1)] = 4
    """How often a read is tried before its store is looked at, and again if that is there."""
    timeout_s: Annotated[float, Field(gt=0)] = 20.0
    """Longest silence of a store before a read is tried again."""
    patience_minutes: Annotated[float, Field(ge=0)] = 60.0
    """How long a store may be down or deny access to everything. Reading waits so long, then the run saves a
    checkpoint and ends; the rows of a web server that only a dataset names are skipped instead."""
    cache_dir: str | None = None
    """Folder on a fast disk that keeps what was read; null: none."""
    cache_gib: Annotated[float, Field(gt=0)] = 50.0
    """Size of that folder; the longest unused goes first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store says of one thing it holds."""

    name: str
    """Below the source's address."""
    size: int
    """Bytes."""
    etag: str | None
    """Changes when the content does; null where the store has none."""
    modified: datetime | None


@dataclass(frozen=True, slots=True)
class StoreState:
    """A store went down or came back, or denies access or gives it again."""

    store: str
    is_up: bool
    reason: str
    """Why it counts as down."""
    seconds: float
    """How long it was down so far."""
    denies: bool = False
    """It answers, but gives nothing."""

    def __str__(self) -> str:
        if self.denies and self.is_up:
            return f"{self.store} gives access again after {self.seconds:.0f} s."
        if self.denies:
            return f"{self.store} denies access ({self.reason}); reading waits until the keys are renewed."
        if self.is_up:
            return f"{self.store} is back after {self.seconds:.0f} s."
        return f"{self.store} is down ({self.reason}); reading waits for it."


OnState = Callable[[StoreState], None]
"""Called from the thread that talks to stores."""


class Source(Protocol):
    """Things by name below one address; every method may be called from any thread.

    Raises:
        NotFound, Denied, Unavailable, SourceError: from every method.
    """

    root: str
    """The address, fit for messages."""

    def read(self, name: str) -> bytes:
        """All of it."""
        ...

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where it ends before."""
        ...

    def read_buffer(self, name: str, start: int, length: int) -> Buffer:
        """As `read_range`, for large parts: in the memory of the store's client, not copied."""
        ...

    def look(self, name: str) -> Entry:
        """Its size and etag, without its content."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All things whose name begins with the folder `prefix`, by name."""
        ...

    def write(self, name: str, content: bytes | Path) -> None:
        """Put `content`, of a file where it is a path, in place of what was there; whole or not at all."""
        ...

    def delete(self, name: str) -> None:
        """Remove it; nothing happens where it is not there."""
        ...


def open_source(url: str | Path, storage: StorageSection, on_state: OnState | None = None) -> Source:
    """The source at `url`: a folder, `file://`, `http(s)://host`, `s3://bucket/prefix`, `gs://`, `az://`.

    For addresses that the user gave. `on_state` hears when the store goes down and when it is back;
    without it the log does. Nothing is asked of the store yet.

    Raises:
        SourceError: no store is known by this kind of address.
    """
    scheme = scheme_of(str(url))
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in STORES if name)
        raise SourceError(f"{shown(str(url))}: give a folder, or an address that begins with {known}.")
    module = importlib.import_module(f"flowloom.storage.{STORES[scheme]}")
    return module.open_store(str(url), storage, on_state or _log)


def open_named(url: str, storage: StorageSection, on_state: OnState | None = None) -> Source:
    """The source at `url`, an address that a data set names: others may have written it.

    Reading raises Denied where it leads into a private network or to this machine, a cloud's address for its
    machines' keys among them, unless FLOWLOOM_PRIVATE_HOSTS allows that host. A bucket is reached where
    `storage` says, so that no row decides about that.

    Raises:
        SourceError: no store is known by this kind of address, or it is a file's.
    """
    scheme = scheme_of(url)
    if scheme in ("", "file"):
        raise SourceError(f"{shown(url)}: a data set may not name files outside of its folder.")
    if STORES.get(scheme) != "http":
        return open_source(url, storage, on_state)
    from flowloom.storage import http

    return http.open_store(url, storage, on_state or _log, is_given=False)


def _log(state: StoreState) -> None:
    logging.getLogger(__name__).warning("%s", state)


def scheme_of(url: str) -> str:
    """The part of `url` before ://, in lower case; "" for a path."""
    return url.partition("://")[0].lower() if "://" in url else ""


def shown(url: str) -> str:
    """`url` for people and logs: without the password before @ and the signature after ?."""
    safe = printable(url)
    # The address alone may have spaces, at which one in a sentence would end.
    return safe.partition("?")[0].partition("#")[0] if scheme_of(url).startswith("http") else safe
