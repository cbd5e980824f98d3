"""Where the pictures of rows come from: folders at once, stores through one fetcher."""

from __future__ import annotations

import threading
from pathlib import Path

from flowloom.data.fetch.fetcher import Fetch, Fetcher
from flowloom.data.metadata import Row
from flowloom.errors import ImageError, SourceError, StoreDenied, StoreDown
from flowloom.storage.base import ObjectInfo, OnState, StorageSection, scheme_of
from flowloom.storage.local import find_image


class ImageSource:
    """Pictures by row; the fetcher, with its threads, is made when the first row is not a local file."""

    def __init__(self, storage: StorageSection | None = None, on_state: OnState | None = None):
        self._storage = storage or StorageSection()
        self.on_state = on_state
        self._lock = threading.Lock()
        self._made: Fetcher | None = None

    @staticmethod
    def is_remote(row: Row, folder: str) -> bool:
        """Whether the picture of `row` lies in a store."""
        return row.is_url_based or scheme_of(folder) not in ("", "file")

    def prefetch(self, row: Row, folder: str) -> Fetch | None:
        """Start to fetch the picture of `row`; None where it is a file below `folder`."""
        return (
            self._fetcher.fetch(row.filename, row.is_url_based, folder)
            if self.is_remote(row, folder)
            else None
        )

    def get(self, row: Row, folder: str, fetch: Fetch | None = None) -> bytes | Path:
        """The picture of `row`: what `fetch` brings, where it was begun.

        Raises:
            ImageError: there is none.
            StoreDenied, StoreDown: the store gives nothing at all; the row is not to blame.
        """
        fetch = fetch or self.prefetch(row, folder)
        if fetch is None:
            return find_image(Path(folder.removeprefix("file://")), row.filename)
        try:
            return fetch.result()
        except (StoreDenied, StoreDown):
            raise
        except SourceError as error:
            raise ImageError(str(error)) from error

    def stat(self, row: Row, folder: str) -> ObjectInfo:
        """What the store says of the picture of a remote `row`.

        Raises:
            ImageError: there is none.
            StoreDenied, StoreDown: as `get`.
        """
        try:
            return self._fetcher.stat(row.filename, row.is_url_based, folder)
        except (StoreDenied, StoreDown):
            raise
        except SourceError as error:
            raise ImageError(str(error)) from error

    def close(self) -> None:
        """Stop what is under way."""
        with self._lock:
            if self._made:
                self._made.close()
            self._made = None

    @property
    def _fetcher(self) -> Fetcher:
        with self._lock:
            if self._made is None:
                self._made = Fetcher(self._storage, self.on_state)
            return self._made
