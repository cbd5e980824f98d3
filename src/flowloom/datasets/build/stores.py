"""Opens object stores and web servers for builds, by way of `flowloom.storage`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Protocol

from flowloom.storage.base import ObjectInfo, StorageSection
from flowloom.storage.open import open_named, open_source


class ListedObject(Protocol):
    """An object in a listing of a store."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def etag(self) -> str | None: ...
    @property
    def modified(self) -> datetime | float | str | None: ...


class ObjectStore(Protocol):
    """The objects below one URL; safe in several threads."""

    root: str
    """The URL for messages."""

    def stat(self, name: str) -> ObjectInfo: ...
    def read(self, name: str) -> bytes: ...
    def read_range(self, name: str, start: int, length: int) -> bytes: ...
    def list(self, prefix: str) -> Iterator[ListedObject]: ...
    def write(self, name: str, content: bytes | Path) -> None: ...


def open_store(url: str, storage: StorageSection | None = None) -> ObjectStore:
    """The store at `url`, which the user chose, with keys from the environment or profile files.

    Raises:
        SourceError: the URL is not supported, or its keys are missing.
    """
    return open_source(url, storage or StorageSection())


class NamedStores:
    """The stores of URLs in rows, each opened once; safe in several threads."""

    def __init__(self, storage: StorageSection | None = None):
        self._storage = storage or StorageSection()
        self._open: dict[str, ObjectStore] = {}
        self._lock = threading.Lock()

    def of(self, url: str) -> tuple[ObjectStore, str]:
        """The store of `url` and the object's name there.

        Raises:
            SourceError: the URL is not supported.
        """
        host, name = split_url(url)
        with self._lock:
            if host not in self._open:
                self._open[host] = open_named(host, self._storage)
            return self._open[host], name

    def read(self, url: str) -> bytes:
        """The content at `url`.

        Raises:
            SourceError: it cannot be read, or leads into a private network.
        """
        store, name = self.of(url)
        return store.read(name)


def split_url(url: str) -> tuple[str, str]:
    """The store's URL (scheme and host) and the object's name (the path without its first slash).

    >>> split_url("s3://bucket/a/b.png")
    ('s3://bucket', 'a/b.png')
    """
    scheme, _, rest = url.partition("://")
    host, _, name = rest.partition("/")
    return f"{scheme}://{host}", name


def etag_of(entry: ListedObject) -> str:
    """The object's ETag; without one, size and modification time."""
    return (entry.etag or "").strip('"') or f"{entry.size}:{entry.modified}"
