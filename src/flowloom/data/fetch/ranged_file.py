"""A large object of a store as a file: blocks are read on demand, and few are in memory."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Protocol

from typing_extensions import Buffer

from flowloom.data.fetch.disk_cache import DiskCache
from flowloom.errors import SourceError
from flowloom.storage.base import ObjectInfo

BLOCK_BYTES = 2**20
BLOCKS_IN_MEMORY = 16


class RangedSource(Protocol):
    """A store that gives parts of objects."""

    root: str
    """Its URL for messages."""

    def stat(self, name: str) -> ObjectInfo: ...
    def read_range(self, name: str, start: int, length: int) -> bytes: ...


class RangedFile(io.RawIOBase):
    """A video in a store, for decoders that seek. Blocks are also kept in `cache` if the store has an etag.

    Raises:
        SourceError: from every method, if the store cannot be read.
    """

    def __init__(self, source: RangedSource, name: str, cache: DiskCache | None = None):
        self._source = source
        self._object = source.stat(name)
        self._cache = cache if self._object.etag else None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0
        self.bytes_read = 0
        """Number of bytes read from the store."""

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._object.size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        number, start = divmod(self._position, BLOCK_BYTES)
        if self._position >= self.size or not len(view):
            return 0
        part = self._block(number)[start : start + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        length = min(BLOCK_BYTES, self.size - number * BLOCK_BYTES)
        block = self._from_disk(number) or self._from_store(number, length)
        if len(block) != length:
            where = f"{self._source.root}/{self._object.name}"
            raise SourceError(f"{where}: it has changed while it was read. Start again.")
        self._blocks[number] = block
        if len(self._blocks) > BLOCKS_IN_MEMORY:
            self._blocks.popitem(last=False)
        return block

    def _address(self, number: int) -> str:
        return f"{self._source.root}/{self._object.name}#{number}"

    def _from_disk(self, number: int) -> bytes | None:
        cached = self._cache.find(self._address(number)) if self._cache else None
        if not self._cache or not cached or cached.etag != self._object.etag:
            return None
        return self._cache.read(self._address(number), cached)

    def _from_store(self, number: int, length: int) -> bytes:
        block = self._source.read_range(self._object.name, number * BLOCK_BYTES, length)
        self.bytes_read += len(block)
        if self._cache and self._object.etag:
            self._cache.add(self._address(number), self._object.etag, block)
        return block
