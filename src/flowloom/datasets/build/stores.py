"""Object stores and addresses, through the sources of `parts/`: the one place that opens them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

from flowloom.storage.base import StorageSection
from flowloom.storage.open import open_named, open_source


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


def open_store(url: str, storage: StorageSection | None = None) -> Store:
    """The store at `url`, which the user gave, with keys from the environment or profile files.

    Raises:
        SourceError: none is known for such an address, or there are no keys for it.
    """
    return open_source(url, storage or StorageSection())


class NamedStores:
    """The stores of the addresses that rows name, each opened once; used from any thread."""

    def __init__(self, storage: StorageSection | None = None):
        self._storage = storage or StorageSection()
        self._open: dict[str, Store] = {}
        self._lock = threading.Lock()

    def of(self, url: str) -> tuple[Store, str]:
        """The store of `url` and the object's name there.

        Raises:
            SourceError: none is known for such an address.
        """
        host, name = split_url(url)
        with self._lock:
            if host not in self._open:
                self._open[host] = open_named(host, self._storage)
            return self._open[host], name

    def read(self, url: str) -> bytes:
        """What lies at `url`.

        Raises:
            SourceError: it cannot be read, or leads into a private network.
        """
        store, name = self.of(url)
        return store.read(name)


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
