"""Shard files: a sequence of records with checksums, and an index at the end.

    record   header (128 bytes), payload, zeros up to a multiple of 64
    footer   the headers of all records again, in order
    trailer  magic, number of records, start of the footer, checksum of the footer

Only the process with the lock of a file appends to it, under a name that ends in `.open`. Sealing writes
footer and trailer, flushes to the disk and renames the file to `.shard`. If a process is killed, the next one
seals its file, with all records before the first incomplete one.
docs/cache-format.md has the fields. Imports no torch.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowloom.errors import CacheError
from flowloom.files import sync
from flowloom.locks import try_lock

OPEN, SEALED = ".open", ".shard"
ALIGNMENT = 64
MAX_AXES = 6
HEADER = struct.Struct("<4sB3x16s8s16s16sQQQ6IQQ")
TRAILER = struct.Struct("<8sQQQ")
_RECORD_MAGIC, _TRAILER_MAGIC = b"FLr1", b"FLshard1"
_LENGTH = HEADER.size - 8
COLUMNS = np.dtype(
    {
        "names": ["kind", "high", "low", "offset", "length", "created"],
        "formats": ["S16", "<u8", "<u8", "<u8", "<u8", "<u8"],
        "offsets": [8, 32, 40, 64, 72, 112],
        "itemsize": HEADER.size,
    }
)
"""The columns of a footer for searching and counting; `high` and `low` are the halves of the key."""


class Record(NamedTuple):
    """The metadata of a record."""

    kind: str
    dtype: str
    """Number format as in torch: bfloat16, float32, ..."""
    shape: tuple[int, ...]
    key: bytes
    """16-byte hash of the source of the payload and its encoding."""
    sample: bytes
    """16-byte hash of the source alone, which readers compare with the expected one."""
    offset: int
    """Of the payload, in bytes from the start of the file."""
    length: int
    """Of the payload in bytes."""
    checksum: int
    """xxh3, 64 bits, of the payload."""
    created: int
    """Seconds since 1970."""

    def packed(self) -> bytes:
        """The header of 128 bytes, which ends with its checksum."""
        shape = (*self.shape, *(0,) * (MAX_AXES - len(self.shape)))
        head = HEADER.pack(
            _RECORD_MAGIC,
            len(self.shape),
            self.kind.encode(),
            self.dtype.encode(),
            self.key,
            self.sample,
            self.offset,
            self.length,
            self.checksum,
            *shape,
            self.created,
            0,
        )[:_LENGTH]
        return head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little")


def unpack_header(data: Any, position: int) -> Record | None:
    """The record whose header is at `position` of `data`; None if there is no intact header."""
    if position + HEADER.size > len(data):
        return None
    magic, ndim, kind, dtype, key, sample, *rest, check = HEADER.unpack_from(data, position)
    offset, length, checksum, *shape, created = rest
    if magic != _RECORD_MAGIC or ndim > MAX_AXES:
        return None
    if xxhash.xxh3_64_intdigest(data[position : position + _LENGTH]) != check:
        return None
    names = (kind.rstrip(b"\0").decode(), dtype.rstrip(b"\0").decode())
    return Record(*names, tuple(shape[:ndim]), key, sample, offset, length, checksum, created)


def checksum(payload: Any) -> int:
    """xxh3, 64 bits, of a bytes-like object."""
    return xxhash.xxh3_64_intdigest(payload)


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT) * ALIGNMENT


class ShardWriter:
    """A new shard in `folder`, written by this process only; not thread-safe."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._file = _create(folder)
        self.records: list[Record] = []
        self.size = 0
        """Bytes in the file."""

    def append(self, kind: str, key: bytes, sample: bytes, array: NDArray[Any], dtype: str) -> Record:
        """Add a record; after this returns, a kill does not lose it.

        Args:
            array: the payload, contiguous, in any format as wide as `dtype`.

        Raises:
            OSError: it cannot be written, such as on a full disk; the shard stays intact.
        """
        check = checksum(array.reshape(-1).view(np.uint8).data)
        record = Record(kind, dtype, array.shape, key, sample, 0, array.nbytes, check, int(time.time()))
        return self.append_copy(record, array)

    def append_copy(self, record: Record, array: NDArray[Any]) -> Record:
        """Add a record of another shard, with its new offset."""
        payload = array.reshape(-1).view(np.uint8).data
        record = record._replace(offset=self.size + HEADER.size)
        end = record.offset + len(payload)
        self._write(record.packed(), payload, bytes(_aligned(end) - end))
        self.size = _aligned(end)
        self.records.append(record)
        return record

    def _write(self, *pieces: Any) -> None:
        num_bytes = sum(len(piece) for piece in pieces)
        try:
            # One call, which the system completes unless the disk is full or a signal arrives.
            if os.writev(self._file, pieces) != num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.ftruncate(self._file, self.size)
            os.lseek(self._file, self.size, os.SEEK_SET)
            raise

    def read(self, record: Record) -> bytearray:
        """The payload of a record of this shard."""
        payload = bytearray(record.length)
        os.preadv(self._file, [payload], record.offset)
        return payload

    def seal(self) -> Path | None:
        """Write the index, flush and rename; returns the sealed file, or None without records."""
        return _seal(self._file, self.path, self.records, self.size)


def _create(folder: Path) -> tuple[Path, int]:
    while True:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{stamp}-{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        path = folder / f"{name}{OPEN}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        if try_lock(file) and _has_inode(path, file):
            return path, file
        # Another process took the new file for a leftover before it was locked.
        os.close(file)


def _has_inode(path: Path, file: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False


def _seal(file: int, path: Path, records: list[Record], size: int) -> Path | None:
    try:
        if not records:
            path.unlink()
            return None
        footer = b"".join(record.packed() for record in records)
        trailer = TRAILER.pack(_TRAILER_MAGIC, len(records), size, checksum(footer))
        os.ftruncate(file, size)
        os.pwrite(file, footer + trailer, size)
        os.fsync(file)
        sealed = path.with_suffix(SEALED)
        path.rename(sealed)
        sync(path.parent)
        return sealed
    finally:
        os.close(file)


def recover(folder: Path) -> list[Path]:
    """Seal the files that killed processes left open in `folder`, but not those in use."""
    sealed: list[Path] = []
    for path in sorted(folder.glob(f"*{OPEN}")):
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        if not (try_lock(file) and _has_inode(path, file)):
            os.close(file)
            continue
        records = list(_intact_records(file))
        end = _aligned(records[-1].offset + records[-1].length) if records else 0
        shard = _seal(file, path, records, end)
        sealed += [shard] if shard else []
    return sealed


def _intact_records(file: int) -> Iterator[Record]:
    """The records of `file` up to the first incomplete or damaged one."""
    size = os.fstat(file).st_size
    if not size:
        return
    with mmap.mmap(file, size, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
        yield from scan(view)


def scan(data: Any) -> Iterator[Record]:
    """The intact records of `data`, by their headers, up to the first damaged one."""
    position = 0
    while (record := unpack_header(data, position)) is not None:
        end = record.offset + record.length
        if record.offset != position + HEADER.size or end > len(data):
            return
        if checksum(data[record.offset : end]) != record.checksum:
            return
        yield record
        position = _aligned(end)


def read_trailer(name: str, tail: bytes, size: int) -> tuple[int, int, int]:
    """Number of records, start of the footer and its checksum.

    Args:
        tail: the last bytes of the file.
        size: of the complete file.

    Raises:
        CacheError: the file is not a sealed shard, or is truncated.
    """
    if len(tail) >= TRAILER.size:
        magic, count, start, check = TRAILER.unpack(tail[-TRAILER.size :])
        if magic == _TRAILER_MAGIC and start + count * HEADER.size + TRAILER.size == size:
            return count, start, check
    raise CacheError(f"{name}: not a complete shard. 'flowloom cache prune' removes it.")


def check_footer(name: str, footer: bytes, check: int) -> bytes:
    """`footer`, if its checksum is right.

    Raises:
        CacheError: it is damaged.
    """
    if checksum(footer) != check:
        raise CacheError(f"{name}: its index is damaged. 'flowloom cache prune' removes it.")
    return footer
