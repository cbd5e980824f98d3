"""Where sealed shards lie: a folder, read by mmap, or an object store, read by ranges."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer

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

FOOTERS = 4096
"""Indexes of remote shards that are kept in memory."""


class Entry(Protocol):
    """What a store says of one thing it holds."""

    @property
    def name(self) -> str:
        """Below the store's address."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...


class RangeStore(Protocol):
    """What is asked of an object store; flowloom.storage has them. Thread-safe."""

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on."""
        ...

    def read_buffer(self, name: str, start: int, length: int) -> Buffer:
        """As `read_range`, not copied."""
        ...

    def read(self, name: str) -> bytes:
        """All of it."""
        ...

    def write(self, name: str, content: bytes | Path) -> None:
        """Put `content` there, whole or not at all."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All things whose name begins with `prefix`."""
        ...

    def delete(self, name: str) -> None:
        """Remove it, if it is there."""
        ...


class Shard(Protocol):
    """A sealed shard."""

    name: str
    columns: NDArray[Any]
    """Of every record, as COLUMNS."""

    def record(self, row: int) -> Record:
        """The record number `row`, by the index. Raises CacheError where that is damaged."""
        ...

    def payload(self, record: Record) -> NDArray[np.uint8]:
        """The bytes of `record`, unchecked; writable, so that torch takes them, but not to be written to."""
        ...

    def fault(self, record: Record) -> str | None:
        """What is wrong with `record` as it lies there; None when header and payload are as written."""
        ...


class ShardStore(Protocol):
    """Sealed shards by name, and a folder of this machine where new ones are written."""

    root: str
    spool: Path

    def names(self) -> dict[str, int]:
        """Size in bytes of every sealed shard, by name."""
        ...

    def open(self, name: str) -> Shard:
        """The shard `name`. Raises CacheError where it is gone or damaged."""
        ...

    def drop_copy(self, name: str) -> bool:
        """Go back to the shard itself where a copy of it is damaged; False when there is no copy."""
        ...

    def publish(self, path: Path) -> None:
        """Take in a shard that was sealed in the spool."""
        ...

    def delete(self, name: str) -> None:
        """Remove a shard."""
        ...


class LocalShards:
    """The shards in a folder, written and read there."""

    def __init__(self, folder: Path):
        self.spool = folder
        self.root = str(folder)
        self.open = lru_cache(MAPS)(lambda name: MappedShard(folder / name))

    def names(self) -> dict[str, int]:
        """See ShardStore."""
        found = {}
        for entry in os.scandir(self.spool) if self.spool.is_dir() else ():
            if entry.name.endswith(SEALED):
                found[entry.name] = entry.stat().st_size
        return found

    def drop_copy(self, name: str) -> bool:  # noqa: ARG002
        """See ShardStore: here are the shards themselves."""
        return False

    def publish(self, path: Path) -> None:
        """Nothing to do: it is where it belongs."""

    def delete(self, name: str) -> None:
        """See ShardStore."""
        (self.spool / name).unlink(missing_ok=True)


class FetchedShard:
    """A shard in an object store: its index is fetched once, records one by one."""

    def __init__(self, store: RangeStore, name: str, size: int, mirror: Mirror):
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
        found = unpack_header(self._footer, row * HEADER.size)
        assert found is not None, "the footer as a whole was checked"
        return found

    def payload(self, record: Record) -> NDArray[np.uint8]:
        """See Shard."""
        return self.fetch(record)[1]

    def fault(self, record: Record) -> str | None:
        """See Shard."""
        return self.fetch(record)[0]

    def fetch(self, record: Record) -> tuple[str | None, NDArray[np.uint8]]:
        """What is wrong with `record`, and its payload, in one request."""
        start = record.offset - HEADER.size
        length = HEADER.size + record.length
        found = self._mirror.read(self.name, start, length)
        whole = bytearray(self._store.read_range(self.name, start, length) if found is None else found)
        payload = np.frombuffer(whole, np.uint8)[HEADER.size :]
        return find_fault(unpack_header(whole, 0), record, payload), payload


class RemoteShards:
    """The shards in an object store; new ones are written in `spool` and sent when they are sealed.

    Copies of at most `mirror_bytes` come to this machine.
    """

    def __init__(self, store: RangeStore, spool: Path, root: str, mirror_bytes: int = 0):
        self.spool = spool
        self.root = root
        self.mirror = Mirror(store.read_buffer, spool / "mirror", mirror_bytes)
        self._store = store
        self._sizes: dict[str, int] = {}
        self._fetched = lru_cache(FOOTERS)(
            lambda name: FetchedShard(store, name, self._sizes[name], self.mirror)
        )

    def open(self, name: str) -> Shard:
        """See ShardStore; the copy, where there is one."""
        return self.mirror.shard(name) or self._fetched(name)

    def drop_copy(self, name: str) -> bool:
        """See ShardStore."""
        return self.mirror.drop(name)

    def names(self) -> dict[str, int]:
        """See ShardStore; what a killed process sealed and did not send is sent first."""
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
    """Bytes in shards that are being written in `folder`."""
    return sum(path.stat().st_size for path in folder.glob(f"*{OPEN}"))
