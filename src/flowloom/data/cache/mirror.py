"""Copies of a store's shards on this machine's disk: brought whole, in the background of reading records.

Large ranges come many times faster than single records, and the next epoch asks the store for nothing.
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
SPARED_BYTES = 2 * 2**30
"""Of the disk: never taken."""
PART = ".part"
ReadRange = Callable[[str, int, int], Buffer]


@dataclass
class _Coming:
    """A shard on its way."""

    name: str
    size: int
    file: int
    asked: int = 0
    done: set[int] = field(default_factory=set)
    """Starts of the pieces that are there."""
    under_way: int = 0
    """Pieces: as long as there are any, the file stays open."""
    is_given_up: bool = False

    @property
    def is_whole(self) -> bool:
        return len(self.done) == -(-self.size // PIECE_BYTES)

    def has(self, start: int, length: int) -> bool:
        first = start // PIECE_BYTES * PIECE_BYTES
        return all(piece in self.done for piece in range(first, start + length, PIECE_BYTES))


class Mirror:
    """Copies in `folder`, at most `limit_bytes` of them; one process of a machine brings them."""

    def __init__(self, read_range: ReadRange, folder: Path, limit_bytes: int):
        self.folder, self.limit_bytes = folder, limit_bytes
        self._read_range = read_range
        self._here: dict[str, int] = {}
        self._coming: dict[str, _Coming] = {}
        self._wanted: deque[tuple[str, int]] = deque()
        self._threads: list[threading.Thread] = []
        self._lock = threading.RLock()
        self._holds: int | None = None
        self._map = lru_cache(MAPS)(lambda name: MappedShard(folder / name))

    def follow(self, sizes: Mapping[str, int]) -> None:
        """Bring the shards that the store has now, and drop what it no longer has."""
        if not self.limit_bytes:
            return
        with self._lock:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._become_bringer()
            except OSError:
                # Read-only or full: records are read from the store.
                return
            for path in self.folder.glob(f"*{SEALED}"):
                if sizes.get(path.name) == path.stat().st_size:
                    self._here[path.name] = sizes[path.name]
                elif self._holds is not None:
                    path.unlink()
            self._here = {name: size for name, size in self._here.items() if name in sizes}
            known = self._here.keys() | self._coming.keys()
            self._wanted = deque((name, size) for name, size in sorted(sizes.items()) if name not in known)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while self._holds is not None and self._wanted and len(self._threads) < PIECES_AT_ONCE:
                # Daemons: a store that is down keeps nobody from leaving.
                self._threads.append(threading.Thread(target=self._bring, name="mirror", daemon=True))
                self._threads[-1].start()

    def _become_bringer(self) -> None:
        """Become the one process that brings, unless another one is."""
        if self._holds is not None:
            return
        file = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not try_lock(file):
            os.close(file)
            return
        self._holds = file
        for torn in self.folder.glob(f"*{PART}"):
            torn.unlink()

    def shard(self, name: str) -> MappedShard | None:
        """The copy of `name`, if it is here."""
        if name not in self._here:
            return None
        try:
            return self._map(name)
        except CacheError:
            self._here.pop(name, None)
            return None

    def drop(self, name: str) -> bool:
        """Do without the copy of `name`, which is damaged; False when there is none."""
        with self._lock:
            if self._here.pop(name, None) is None:
                return False
            (self.folder / name).unlink(missing_ok=True)
            return True

    def read(self, name: str, start: int, length: int) -> bytes | None:
        """A range of a shard that is on its way, if that part is here."""
        with self._lock:
            coming = self._coming.get(name)
            return os.pread(coming.file, length, start) if coming and coming.has(start, length) else None

    def _bring(self) -> None:
        """Piece after piece, shard after shard."""
        while (piece := self._next_piece()) is not None:
            coming, start = piece
            try:
                content = self._read_range(coming.name, start, min(PIECE_BYTES, coming.size - start))
                os.pwrite(coming.file, content, start)
                is_there = True
            except (FlowloomError, OSError):
                # The store or the disk fails: records are read one by one, as without a copy.
                is_there = False
            with self._lock:
                coming.under_way -= 1
                coming.is_given_up |= not is_there
                coming.done |= {start} if is_there else set()
                is_over = not coming.under_way and (coming.is_whole or coming.is_given_up)
            if is_over:
                self._finish(coming)

    def _next_piece(self) -> tuple[_Coming, int] | None:
        with self._lock:
            for coming in self._coming.values():
                if coming.asked < coming.size and not coming.is_given_up:
                    break
            else:
                coming = self._begin()
                if coming is None:
                    return None
            start, coming.asked = coming.asked, coming.asked + PIECE_BYTES
            coming.under_way += 1
            return coming, start

    def _begin(self) -> _Coming | None:
        held = sum(self._here.values()) + sum(coming.size for coming in self._coming.values())
        while self._wanted:
            name, size = self._wanted.popleft()
            free = shutil.disk_usage(self.folder).free - SPARED_BYTES
            if held + size <= self.limit_bytes and size <= free:
                try:
                    file = os.open(self.folder / f"{name}{PART}", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
                except OSError:
                    return None
                self._coming[name] = _Coming(name, size, file)
                return self._coming[name]
        return None

    def _finish(self, coming: _Coming) -> None:
        """Take the copy in; its records are checked when they are first read, as those of every shard."""
        part = self.folder / f"{coming.name}{PART}"
        if coming.is_given_up:
            part.unlink()
        else:
            part.rename(self.folder / coming.name)
        with self._lock:
            if not coming.is_given_up:
                self._here[coming.name] = coming.size
            del self._coming[coming.name]
            os.close(coming.file)
