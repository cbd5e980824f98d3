"""Copies of a store's shards on the local disk, downloaded in the background while records are read.

Large ranges are many times faster than single records, and the next epoch sends no requests to the store.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from typing_extensions import Buffer

from flowloom.data.cache.mapped_shards import MAPS, MappedShard
from flowloom.data.cache.shards import SEALED
from flowloom.errors import CacheError, FlowloomError
from flowloom.locks import try_lock

PIECE_BYTES = 8 * 2**20
PIECES_AT_ONCE = 6
RESERVED_BYTES = 2 * 2**30
"""Bytes to leave free on the disk."""
PART = ".part"
ReadRange = Callable[[str, int, int], Buffer]


@dataclass
class _Download:
    """A shard that is being downloaded."""

    name: str
    size: int
    file: int
    requested: int = 0
    done: set[int] = field(default_factory=set)
    """Start of each piece that was downloaded."""
    num_active: int = 0
    """Pieces being downloaded; while there are any, the file stays open."""
    has_failed: bool = False

    @property
    def is_complete(self) -> bool:
        return len(self.done) == -(-self.size // PIECE_BYTES)

    def has(self, start: int, length: int) -> bool:
        first = start // PIECE_BYTES * PIECE_BYTES
        return all(piece in self.done for piece in range(first, start + length, PIECE_BYTES))


class Mirror:
    """Copies in `folder`, of at most `limit_bytes`; one process per machine downloads them."""

    def __init__(self, read_range: ReadRange, folder: Path, limit_bytes: int):
        self.folder, self.limit_bytes = folder, limit_bytes
        self._read_range = read_range
        self._copies: dict[str, int] = {}
        self._downloads: dict[str, _Download] = {}
        self._missing: deque[tuple[str, int]] = deque()
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()
        self._lock_file: int | None = None

        def open_copy(name: str) -> MappedShard:
            return MappedShard(folder / name)

        self._map = lru_cache(MAPS)(open_copy)

    def follow(self, sizes: Mapping[str, int]) -> None:
        """Download the shards that the store has now, and delete copies of others."""
        if not self.limit_bytes:
            return
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._become_downloader()
            except OSError:
                # The disk is read-only or full: records are read from the store.
                return
            for path in self.folder.glob(f"*{SEALED}"):
                if sizes.get(path.name) == path.stat().st_size:
                    self._copies[path.name] = sizes[path.name]
                elif self._lock_file is not None:
                    path.unlink()
            self._copies = {name: size for name, size in self._copies.items() if name in sizes}
            present = self._copies.keys() | self._downloads.keys()
            self._missing = deque((name, size) for name, size in sorted(sizes.items()) if name not in present)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while self._lock_file is not None and self._missing and len(self._threads) < PIECES_AT_ONCE:
                # Daemon threads, so that a store that is down does not keep the process from ending.
                self._threads.append(threading.Thread(target=self._download, name="mirror", daemon=True))
                self._threads[-1].start()

    def _become_downloader(self) -> None:
        """Become the process that downloads, unless another is."""
        if self._lock_file is not None:
            return
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not try_lock(file):
            os.close(file)
            return
        self._lock_file = file
        for incomplete in self.folder.glob(f"*{PART}"):
            incomplete.unlink()

    def shard(self, name: str) -> MappedShard | None:
        """The copy of `name`, if it is complete."""
        if name not in self._copies:
            return None
        try:
            return self._map(name)
        except CacheError:
            self._copies.pop(name, None)
            return None

    def drop(self, name: str) -> bool:
        """Delete the damaged copy of `name`; False if there is none."""
        with self._lock:
            if self._copies.pop(name, None) is None:
                return False
            (self.folder / name).unlink(missing_ok=True)
            return True

    def read(self, name: str, start: int, length: int) -> bytes | None:
        """A range of a shard that is being downloaded, if it has been received."""
        with self._lock:
            download = self._downloads.get(name)
            return (
                os.pread(download.file, length, start) if download and download.has(start, length) else None
            )

    def _download(self) -> None:
        """Download piece after piece, shard after shard."""
        while (piece := self._next_piece()) is not None:
            download, start = piece
            try:
                content = self._read_range(download.name, start, min(PIECE_BYTES, download.size - start))
                os.pwrite(download.file, content, start)
                is_received = True
            except (FlowloomError, OSError):
                # The store or the disk failed: records are read one by one, as without a copy.
                is_received = False
            with self._lock:
                download.num_active -= 1
                download.has_failed |= not is_received
                download.done |= {start} if is_received else set()
                is_finished = not download.num_active and (download.is_complete or download.has_failed)
            if is_finished:
                self._finish(download)

    def _next_piece(self) -> tuple[_Download, int] | None:
        with self._lock:
            for download in self._downloads.values():
                if download.requested < download.size and not download.has_failed:
                    break
            else:
                download = self._begin()
                if download is None:
                    return None
            start, download.requested = download.requested, download.requested + PIECE_BYTES
            download.num_active += 1
            return download, start

    def _begin(self) -> _Download | None:
        num_bytes = sum(self._copies.values()) + sum(download.size for download in self._downloads.values())
        while self._missing:
            name, size = self._missing.popleft()
            free = shutil.disk_usage(self.folder).free - RESERVED_BYTES
            if num_bytes + size <= self.limit_bytes and size <= free:
                try:
                    file = os.open(self.folder / f"{name}{PART}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
                except OSError:
                    return None
                self._downloads[name] = _Download(name, size, file)
                return self._downloads[name]
        return None

    def _finish(self, download: _Download) -> None:
        """Use the copy; its records are checked at their first read, like those of every shard."""
        part = self.folder / f"{download.name}{PART}"
        if download.has_failed:
            part.unlink()
        else:
            part.rename(self.folder / download.name)
        with self._lock:
            if not download.has_failed:
                self._copies[download.name] = download.size
            del self._downloads[download.name]
            os.close(download.file)
