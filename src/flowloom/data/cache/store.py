"""The cache of encoded records, addressed by the content of their sources.

Any number of processes read and write one cache at the same time. Each appends to its own shard, and reads
the shards of others after they are sealed and `refresh` is called. Imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from flowloom.data.cache.shard_stores import FetchedShard, Shard, ShardStore, open_bytes
from flowloom.data.cache.shards import Record, ShardWriter, recover
from flowloom.errors import CacheError, is_disk_full

SHARD_BYTES = 512 * 2**20
AHEAD_BYTES = 256 * 2**20
"""Limit of prefetched records from an object store."""


class CachedRecord(NamedTuple):
    """A record of the cache."""

    dtype: str
    shape: tuple[int, ...]
    payload: NDArray[np.uint8]
    """Flat bytes."""


class _Index(NamedTuple):
    """All sealed records, sorted by the first half of their keys; 16 bytes each."""

    highs: NDArray[np.uint64]
    shards: NDArray[np.uint32]
    rows: NDArray[np.uint32]


class _SealedRecord(NamedTuple):
    """A sealed record and its location."""

    number: int
    """Of the shard."""
    row: int
    shard: Shard
    record: Record

    def __str__(self) -> str:
        return f"{self.shard.name}: record {self.row} ({self.record.kind})"


_EMPTY = _Index(np.zeros(0, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.uint32))


@dataclass
class Stats:
    """The contents of a cache."""

    shards: int = 0
    bytes: int = 0
    """Of sealed shards, with headers."""
    open_bytes: int = 0
    """Of open shards on this machine."""
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Records and payload bytes of each kind."""
    twice: int = 0
    """Records with the key of another one, which two processes added at the same time."""
    faults: list[str] = field(default_factory=list)


class Cache:
    """The cache in `store`; every method may be called from any thread."""

    def __init__(self, store: ShardStore, limit_bytes: int | None = None, shard_bytes: int = SHARD_BYTES):
        self.store = store
        self.limit_bytes = limit_bytes
        self.shard_bytes = shard_bytes
        self.full: str | None = None
        """Reason why nothing more is added; None if there is room."""
        self.writing_s = 0.0
        """Seconds that this process has spent writing records."""
        self.faults: list[str] = []
        """Damaged shards and records, which count as missing."""
        self._names: list[str] = []
        self._verified: list[NDArray[np.bool_]] = []
        self._index = _EMPTY
        self._own: dict[bytes, Record] = {}
        self._rejected: set[bytes] = set()
        self._broken: set[str] = set()
        self._ahead: dict[bytes, NDArray[np.uint8]] = {}
        self._ahead_bytes = 0
        self._writer: ShardWriter | None = None
        self._bytes = 0
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read the list of shards again; first seal those that killed processes of this machine left open."""
        with self._lock:
            for path in recover(self.store.spool):
                self.store.publish(path)
            sizes = self.store.names()
            parts = [self._index]
            for name in sorted(sizes.keys() - set(self._names)):
                part = self._read_index(name)
                parts += [part] if part else []
            if len(parts) > 1:
                self._index = _sorted(parts)
            self._bytes = sum(sizes.values()) + open_bytes(self.store.spool)

    def _read_index(self, name: str) -> _Index | None:
        try:
            columns = self.store.open(name).columns
        except CacheError as error:
            if name not in self._broken:
                self._broken.add(name)
                self.faults.append(str(error))
            return None
        number, count = len(self._names), len(columns)
        self._names.append(name)
        self._verified.append(np.zeros(count, bool))
        rows = np.arange(count, dtype=np.uint32)
        return _Index(columns["high"].copy(), np.full(count, number, np.uint32), rows)

    def _find(self, key: bytes, sample: bytes) -> _SealedRecord | None:
        """The sealed record of `key` if it was made from `sample`; its payload is not checked."""
        if key in self._rejected or (sealed := self._locate(key)) is None:
            return None
        if sealed.record.sample != sample:
            self._reject(key, f"{sealed}: made from another sample.")
            return None
        return sealed

    def _locate(self, key: bytes) -> _SealedRecord | None:
        halves: NDArray[np.uint64] = np.frombuffer(key, "<u8", 1)
        index, high = self._index, halves[0]
        at = int(cast("np.intp", index.highs.searchsorted(high)))
        while at < len(index.highs) and index.highs[at] == high:
            number, row = int(index.shards[at]), int(index.rows[at])
            try:
                shard = self.store.open(self._names[number])
                record = shard.record(row)
            except CacheError as error:
                # Pruned by another process, or the disk failed.
                self._reject(key, str(error))
                return None
            if record.key == key:
                return _SealedRecord(number, row, shard, record)
            at += 1
        return None

    def knows(self, key: bytes, sample: bytes) -> bool:
        """True if there is such a record, by the indexes alone."""
        return key in self._own or self._find(key, sample) is not None

    def has(self, key: bytes, sample: bytes) -> bool:
        """True if `get` will return the record; the first time, checks and so prefetches it.

        Called from prefetching threads, so that a damaged record is known in time to encode it again.
        """
        if key in self._own:
            return True
        while (sealed := self._find(key, sample)) is not None:
            if self._is_intact(key, sealed):
                return True
        return False

    def _is_intact(self, key: bytes, sealed: _SealedRecord) -> bool:
        """True if the payload is intact; from an object store it is downloaded and kept for `get`."""
        if isinstance(sealed.shard, FetchedShard):
            if key in self._ahead:
                return True
            fault, payload = sealed.shard.fetch(sealed.record)
            if fault is None:
                self._hold(key, payload)
                return True
        elif self._verified[sealed.number][sealed.row]:
            return True
        else:
            fault = sealed.shard.fault(sealed.record)
        if fault:
            # If a copy is damaged, the shard in the store may be intact.
            if not self.store.drop_copy(sealed.shard.name):
                self._reject(key, f"{sealed}: {fault}.")
            return False
        self._verified[sealed.number][sealed.row] = True
        return True

    def _hold(self, key: bytes, payload: NDArray[np.uint8]) -> None:
        with self._lock:
            if self._ahead_bytes + payload.nbytes <= AHEAD_BYTES:
                self._ahead_bytes += payload.nbytes
                self._ahead[key] = payload

    def _release(self, key: bytes) -> NDArray[np.uint8] | None:
        with self._lock:
            payload = self._ahead.pop(key, None)
            self._ahead_bytes -= payload.nbytes if payload is not None else 0
            return payload

    def _reject(self, key: bytes, reason: str) -> None:
        with self._lock:
            self._rejected.add(key)
            self.faults.append(reason)

    def get(self, key: bytes, sample: bytes) -> CachedRecord | None:
        """The record of `key`, made from `sample`; None if it is missing or damaged."""
        cached = self._from_own(key)
        while cached is None and (sealed := self._find(key, sample)) is not None:
            payload = self._payload(key, sealed)
            if payload is not None:
                cached = CachedRecord(sealed.record.dtype, sealed.record.shape, payload)
        return cached

    def _payload(self, key: bytes, sealed: _SealedRecord) -> NDArray[np.uint8] | None:
        """The checked payload of `sealed`; None to search for the record again."""
        held = self._release(key)
        if held is not None:
            return held
        if not isinstance(sealed.shard, FetchedShard):
            return sealed.shard.payload(sealed.record) if self._is_intact(key, sealed) else None
        fault, payload = sealed.shard.fetch(sealed.record)
        if fault:
            self._reject(key, f"{sealed}: {fault}.")
        return None if fault else payload

    def _from_own(self, key: bytes) -> CachedRecord | None:
        """The record in the shard that this process writes."""
        if key not in self._own:
            return None
        with self._lock:
            own = self._own.get(key)
            if own is None or self._writer is None:
                return None
            return CachedRecord(own.dtype, own.shape, np.frombuffer(self._writer.read(own), np.uint8))

    def put(self, kind: str, key: bytes, sample: bytes, array: NDArray[Any], dtype: str) -> bool:
        """Add a record if it is missing; False if the cache is full, for the reason in `full`.

        Args:
            array: the payload, in any format as wide as `dtype`.
        """
        with self._lock:
            if key in self._own or (key not in self._rejected and self._locate(key)):
                return True
            if self.full:
                return False
            if self.limit_bytes is not None and self._bytes + array.nbytes > self.limit_bytes:
                self.full = f"{self.store.root} has reached its limit of {self.limit_bytes / 2**30:.3g} GiB"
                return False
            try:
                self._append(kind, key, sample, array, dtype)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                self.full = f"{self.store.spool}: the disk is full"
                return False
            self._rejected.discard(key)
            return True

    def _append(self, kind: str, key: bytes, sample: bytes, array: NDArray[Any], dtype: str) -> None:
        start = time.perf_counter()
        if self._writer is None:
            self._writer = ShardWriter(self.store.spool)
        before = self._writer.size
        self._own[key] = self._writer.append(kind, key, sample, np.ascontiguousarray(array), dtype)
        self._bytes += self._writer.size - before
        if self._writer.size >= self.shard_bytes:
            self.seal()
        self.writing_s += time.perf_counter() - start

    def seal(self) -> None:
        """Make the records of this process readable for others; a later `put` begins a new shard."""
        with self._lock:
            if self._writer is None:
                return
            writer, self._writer = self._writer, None
            try:
                self._publish(writer)
                self.refresh()
            except OSError as error:
                if not is_disk_full(error):
                    raise
                self.full = f"{self.store.spool}: the disk is full"
            # Cleared last, because records are read from the open file until the index has them.
            self._own.clear()

    def _publish(self, writer: ShardWriter) -> None:
        sealed = writer.seal()
        if sealed:
            self.store.publish(sealed)

    def stats(self) -> Stats:
        """Number and size of the records of each kind."""
        columns = [self.store.open(name).columns for name in self._names]
        stats = Stats(len(columns), sum(self.store.names().values()), open_bytes(self.store.spool))
        stats.faults = list(self.faults)
        if columns:
            records = np.concatenate(columns)
            for kind in np.unique(records["kind"]):
                lengths = records["length"][records["kind"] == kind]
                stats.kinds[kind.decode()] = (len(lengths), int(lengths.sum()))
            stats.twice = len(records) - len(np.unique(records[["high", "low"]]))
        return stats

    def verify(self) -> Iterator[str]:
        """Read every sealed record; yields the faults."""
        yield from self.faults
        for name in self._names:
            shard = self.store.open(name)
            for row in range(len(shard.columns)):
                record = shard.record(row)
                if fault := shard.fault(record):
                    yield f"{name}: record {row} ({record.kind}, {record.key.hex()}): {fault}."

    def prune(
        self, is_kept: Callable[[bytes], bool], kept_kinds: Collection[str] = frozenset()
    ) -> tuple[int, int]:
        """Delete sealed records that are unused, duplicate or damaged; returns how many, and how many remain.

        Records of `kept_kinds` and those whose key `is_kept` are used. Shards that lose none stay unchanged.
        A kill leaves records twice, but loses none. Must not be called while a run uses this cache.
        """
        self.seal()
        self.refresh()
        seen: set[bytes] = set()
        dropped, obsolete = 0, [*self._broken]
        writer: ShardWriter | None = None
        for name in self._names:
            shard = self.store.open(name)
            kept = [
                record
                for record in _records(shard)
                if (record.kind in kept_kinds or is_kept(record.key)) and record.key not in seen
            ]
            kept = [record for record in kept if not shard.fault(record)]
            seen.update(record.key for record in kept)
            if len(kept) == len(shard.columns):
                continue
            dropped += len(shard.columns) - len(kept)
            obsolete.append(name)
            for record in kept:
                writer = writer or ShardWriter(self.store.spool)
                writer.append_copy(record, shard.payload(record))
                if writer.size >= self.shard_bytes:
                    self._publish(writer)
                    writer = None
        if writer:
            self._publish(writer)
        for name in obsolete:
            self.store.delete(name)
        self._reset()
        return dropped, len(seen)

    def _reset(self) -> None:
        """Read all indexes again."""
        self._names, self._verified, self._index = [], [], _EMPTY
        self._rejected, self._broken, self.faults = set(), set(), []
        self.refresh()


def _records(shard: Shard) -> list[Record]:
    return [shard.record(row) for row in range(len(shard.columns))]


def _sorted(parts: list[_Index]) -> _Index:
    highs, shards, rows = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    # Stable, so that of duplicate records the first one is read.
    order = np.argsort(highs, kind="stable")
    return _Index(highs[order], shards[order], rows[order])
