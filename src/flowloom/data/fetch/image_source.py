"""The images and videos of rows: from folders directly, from stores through one fetcher."""

from __future__ import annotations

import threading
from pathlib import Path

from flowloom.data.fetch.fetcher import Fetch, Fetcher
from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.data.metadata import Row
from flowloom.errors import ImageError, SourceError, StoreDenied, StoreDown
from flowloom.storage.base import ObjectInfo, OnState, StorageSection, scheme_of
from flowloom.storage.local import find_image


class ImageSource:
    """Images by row. The fetcher and its threads start with the first image from a store."""

    def __init__(self, storage: StorageSection | None = None, on_state: OnState | None = None):
        self._storage = storage or StorageSection()
        self.on_state = on_state
        self._lock = threading.Lock()
        self._open_fetcher: Fetcher | None = None

    @staticmethod
    def is_remote(row: Row, folder: str) -> bool:
        """True if the image of `row` is in a store."""
        return row.is_url_based or scheme_of(folder) not in ("", "file")

    def prefetch(self, row: Row, folder: str) -> Fetch | None:
        """Start to download the image of `row`; None if it is a file in `folder`."""
        return (
            self._fetcher.fetch(row.filename, row.is_url_based, folder)
            if self.is_remote(row, folder)
            else None
        )

    def get(self, row: Row, folder: str, fetch: Fetch | None = None) -> bytes | Path:
        """The image of `row`, from `fetch` if its download was started.

        Raises:
            ImageError: it is missing.
            StoreDenied, StoreDown: the whole store is unavailable, not this image only.
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

    def open_video(self, row: Row, folder: str) -> Path | RangedFile:
        """The video of `row`: a local file, or one that is read from its store in blocks.

        Raises:
            ImageError: it is missing.
            StoreDenied, StoreDown: as `get`.
        """
        if not self.is_remote(row, folder):
            return find_image(Path(folder.removeprefix("file://")), row.filename)
        try:
            return self._fetcher.open_video(row.filename, row.is_url_based, folder)
        except (StoreDenied, StoreDown):
            raise
        except SourceError as error:
            raise ImageError(str(error)) from error

    def stat(self, row: Row, folder: str) -> ObjectInfo:
        """Metadata of the image of `row` in its store.

        Raises:
            ImageError: it is missing.
            StoreDenied, StoreDown: as `get`.
        """
        try:
            return self._fetcher.stat(row.filename, row.is_url_based, folder)
        except (StoreDenied, StoreDown):
            raise
        except SourceError as error:
            raise ImageError(str(error)) from error

    def close(self) -> None:
        """Stop all downloads."""
        with self._lock:
            if self._open_fetcher:
                self._open_fetcher.close()
            self._open_fetcher = None

    @property
    def _fetcher(self) -> Fetcher:
        with self._lock:
            if self._open_fetcher is None:
                self._open_fetcher = Fetcher(self._storage, self.on_state)
            return self._open_fetcher
