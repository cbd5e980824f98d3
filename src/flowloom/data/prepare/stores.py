"""Object stores and addresses, through the sources of `parts/`: the one place that opens them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

from flowloom.errors import DataError


class Entry(Protocol):
    """An object in a listing."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str | None: ...
    @property
    def modified(self) -> datetime | float | str | None: ...


class Store(Protocol):
    """What `parts/sources` opens: objects below one address, from any thread."""

    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, start: int, length: int) -> bytes: ...
    def list(self, prefix: str) -> Iterator[Entry]: ...
    def write(self, name: str, content: bytes | Path) -> None: ...


def open_store(url: str) -> Store:
    """The store at `url`, with keys from the environment or profile files.

    Raises:
        SourceError: none is known for such an address, or there are no keys for it.
    """
    try:
        from flowloom.parts.sources.base import (  # pyright: ignore[reportMissingImports]
            StorageSection,
            open_source,
        )
    except ImportError as error:
        raise DataError(f"{url}: object stores are not there in this version.") from error
    return open_source(url, StorageSection())


def split_url(url: str) -> tuple[str, str]:
    """The store's address and the object's name: scheme and host, and the path without its first slash.

    >>> split_url("s3://bucket/a/b.png")
    ('s3://bucket', 'a/b.png')
    """
    scheme, _, rest = url.partition("://")
    host, _, name = rest.partition("/")
    return f"{scheme}://{host}", name


def etag_of(entry: Entry) -> str:
    """What tells whether an object changed."""
    return (entry.etag or "").strip('"') or f"{entry.size}:{entry.modified}"
