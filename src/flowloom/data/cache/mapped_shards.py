"""Shards in files of this machine."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowloom.data.cache.shards import (
    COLUMNS,
    HEADER,
    TRAILER,
    Record,
    check_footer,
    checksum,
    read_trailer,
    unpack_header,
)
from flowloom.errors import CacheError

MAPS = 256
"""Shards of a folder that are mapped at a time: each one takes a file descriptor."""


class MappedShard:
    """A shard file in memory's address space: only what is looked at is read."""

    def __init__(self, path: Path):
        self.name = path.name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A private copy that nobody writes to: torch refuses what is read-only.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CacheError(f"{path}: not readable as a shard ({error}).") from error
        if hasattr(mmap, "MADV_RANDOM"):
            # The neighbours of a record are not what is wanted next.
            self._map.madvise(mmap.MADV_RANDOM)
        count, self._start, check = read_trailer(self.name, self._map[-TRAILER.size :], size)
        footer = self._map[self._start : self._start + count * HEADER.size]
        self.columns = np.frombuffer(check_footer(self.name, footer, check), COLUMNS)

    def record(self, row: int) -> Record:
        """See Shard."""
        found = unpack_header(self._map, self._start + row * HEADER.size)
        if found is None:
            raise CacheError(f"{self.name}: entry {row} of its index is damaged.")
        return found

    def payload(self, record: Record) -> NDArray[np.uint8]:
        """See Shard."""
        return np.frombuffer(self._map, np.uint8, record.length, record.offset)

    def fault(self, record: Record) -> str | None:
        """See Shard."""
        self.read_ahead(record)
        return find_fault(unpack_header(self._map, record.offset - HEADER.size), record, self.payload(record))

    def read_ahead(self, record: Record) -> None:
        """Ask the system to fetch the pages of `record` in one go."""
        if hasattr(mmap, "MADV_WILLNEED"):
            start = (record.offset - HEADER.size) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, record.offset + record.length - start)


def find_fault(found: Record | None, expected: Record, payload: Any) -> str | None:
    """What is wrong with a record: `found` is the header beside its payload, `expected` the index's."""
    if found != expected:
        return "the header is damaged or another record's"
    if checksum(payload) != expected.checksum:
        return "the payload is not what was written"
    return None
