"""Stores of sealed shards: a folder, read by mmap, or an object store, read by ranges."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowloom.data.cache.mapped_shards import MAPS, MappedShard, find_fault
from flowloom.data.cache.mirror import Mirror
from flowloom.data.cache.shards import (
    COLUMNS,
    HEADER,
    OPEN,
    SEALED,
    TRAILER,
    Record,
    check_footer,
    read_trailer,
    unpack_header,
)
from flowloom.storage.base import Source

FOOTERS = 4096
"""Maximum number of indexes of remote shards in memory."""


class Shard(Protocol):
    """A sealed shard."""

    name: str
    columns: NDArray[Any]
    """Of all records, as COLUMNS."""

    def record(self, row: int) -> Record:
        """Record number `row`, from the index. Raises CacheError if its entry is damaged."""
        ...

    def payload(self, record: Record) -> NDArray[np.uint8]:
        """The unchecked bytes of `record`; writable for torch, but must not be written to."""
        ...

    def fault(self, record: Record) -> str | None:
        """The fault of `record` as stored; None if header and payload are intact."""
        ...


class ShardStore(Protocol):
    """Sealed shards by name, and a local folder in which new ones are written."""

    root: str
    spool: Path

    def names(self) -> dict[str, int]:
        """Size in bytes of every sealed shard, by name."""
        ...

    def open(self, name: str) -> Shard:
        """The shard `name`. Raises CacheError if it is missing or damaged."""
        ...

    def drop_copy(self, name: str) -> bool:
        """Delete the damaged copy of a shard, so that the shard itself is read; False if there is none."""
        ...

    def publish(self, path: Path) -> None:
        """Add a shard that was sealed in the spool."""
        ...

    def delete(self, name: str) -> None:
        """Remove a shard."""
        ...


class LocalShards:
    """The shards in a folder, written and read there."""

    def __init__(self, folder: Path):
        self.spool = folder
        self.root = str(folder)

        def open_shard(name: str) -> MappedShard:
            return MappedShard(folder / name)

        self.open = lru_cache(MAPS)(open_shard)

    def names(self) -> dict[str, int]:
        """See ShardStore."""
        entries = os.scandir(self.spool) if self.spool.is_dir() else ()
        return {entry.name: entry.stat().st_size for entry in entries if entry.name.endswith(SEALED)}

    def drop_copy(self, name: str) -> bool:  # noqa: ARG002
        """False: there are no copies."""
        return False

    def publish(self, path: Path) -> None:
        """Do nothing: shards are sealed in their folder."""

    def delete(self, name: str) -> None:
        """See ShardStore."""
        (self.spool / name).unlink(missing_ok=True)


class FetchedShard:
    """A shard in an object store: its index is downloaded once, records one by one."""

    def __init__(self, store: Source, name: str, size: int, mirror: Mirror):
        self.name = name
        self._store = store
        self._mirror = mirror
        tail = store.read_range(name, max(size - TRAILER.size, 0), TRAILER.size)
        count, start, check = read_trailer(name, tail, size)
        footer = store.read_range(name, start, count * HEADER.size)
        self._footer = check_footer(name, footer, check)
        self.columns = np.frombuffer(self._footer, COLUMNS)

    def record(self, row: int) -> Record:
        """See Shard."""
        record = unpack_header(self._footer, row * HEADER.size)
        assert record is not None, "the complete footer was checked"
        return record

    def payload(self, record: Record) -> NDArray[np.uint8]:
        """See Shard."""
        return self.fetch(record)[1]

    def fault(self, record: Record) -> str | None:
        """See Shard."""
        return self.fetch(record)[0]

    def fetch(self, record: Record) -> tuple[str | None, NDArray[np.uint8]]:
        """The fault of `record`, if any, and its payload, in one request."""
        start = record.offset - HEADER.size
        length = HEADER.size + record.length
        content = self._mirror.read(self.name, start, length)
        if content is None:
            content = self._store.read_range(self.name, start, length)
        data = bytearray(content)
        payload = np.frombuffer(data, np.uint8)[HEADER.size :]
        return find_fault(unpack_header(data, 0), record, payload), payload


class RemoteShards:
    """The shards in an object store; new ones are written in `spool` and uploaded once sealed.

    Up to `mirror_bytes` are copied to this machine.
    """

    def __init__(self, store: Source, spool: Path, root: str, mirror_bytes: int = 0):
        self.spool = spool
        self.root = root
        self.mirror = Mirror(store.read_buffer, spool / "mirror", mirror_bytes)
        self._store = store
        self._sizes: dict[str, int] = {}

        def fetch(name: str) -> FetchedShard:
            return FetchedShard(store, name, self._sizes[name], self.mirror)

        self._fetched = lru_cache(FOOTERS)(fetch)

    def open(self, name: str) -> Shard:
        """See ShardStore; the local copy, if there is one."""
        return self.mirror.shard(name) or self._fetched(name)

    def drop_copy(self, name: str) -> bool:
        """See ShardStore."""
        return self.mirror.drop(name)

    def names(self) -> dict[str, int]:
        """See ShardStore; first uploads shards that a killed process sealed."""
        for path in sorted(self.spool.glob(f"*{SEALED}")):
            self.publish(path)
        entries = self._store.list("")
        self._sizes = {entry.name: entry.size for entry in entries if entry.name.endswith(SEALED)}
        self.mirror.follow(self._sizes)
        return dict(self._sizes)

    def publish(self, path: Path) -> None:
        """See ShardStore."""
        if path.exists():
            self._store.write(path.name, path)
            path.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """See ShardStore."""
        self._store.delete(name)


def open_bytes(folder: Path) -> int:
    """Bytes in the open shards of `folder`."""
    return sum(path.stat().st_size for path in folder.glob(f"*{OPEN}"))
