"""Shards in local files, mapped into memory."""

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
"""Maximum number of mapped shards of a folder: each takes a file descriptor."""


class MappedShard:
    """A memory-mapped shard file; only the pages in use are read."""

    def __init__(self, path: Path):
        self.name = path.name
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                # A private copy that is never written to, because torch refuses read-only memory.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CacheError(f"{path}: not readable as a shard ({error}).") from error
        if hasattr(mmap, "MADV_RANDOM"):
            # Records are read in random order.
            self._map.madvise(mmap.MADV_RANDOM)
        count, self._start, check = read_trailer(self.name, self._map[-TRAILER.size :], size)
        footer = self._map[self._start : self._start + count * HEADER.size]
        self.columns = np.frombuffer(check_footer(self.name, footer, check), COLUMNS)

    def record(self, row: int) -> Record:
        """See Shard."""
        record = unpack_header(self._map, self._start + row * HEADER.size)
        if record is None:
            raise CacheError(f"{self.name}: entry {row} of its index is damaged.")
        return record

    def payload(self, record: Record) -> NDArray[np.uint8]:
        """See Shard."""
        return np.frombuffer(self._map, np.uint8, record.length, record.offset)

    def fault(self, record: Record) -> str | None:
        """See Shard."""
        self.prefetch(record)
        return find_fault(unpack_header(self._map, record.offset - HEADER.size), record, self.payload(record))

    def prefetch(self, record: Record) -> None:
        """Tell the system to read the pages of `record` at once."""
        if hasattr(mmap, "MADV_WILLNEED"):
            start = (record.offset - HEADER.size) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, start, record.offset + record.length - start)


def find_fault(header: Record | None, expected: Record, payload: Any) -> str | None:
    """The fault of a record, if any: `header` is the one before its payload, `expected` the index's."""
    if header != expected:
        return "the header is damaged or another record's"
    if checksum(payload) != expected.checksum:
        return "the payload is damaged"
    return None
