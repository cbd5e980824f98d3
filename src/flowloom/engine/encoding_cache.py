"""Where encoded things stay: nowhere, in memory, or in the cache on disk."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from flowloom.data.cache.records.base import RecordKind, to_tensor
from flowloom.data.cache.store import Cache
from flowloom.models.family import Conditioning

S = TypeVar("S", bound=Hashable, contravariant=True)


class EncodingCache(Protocol[S]):
    """Keeps the tensor of each subject: (row, size) of an image, or a caption."""

    is_lasting: bool
    """Whether what is kept outlives the process, so that the encoder may go."""

    def has(self, subject: S) -> bool:
        """Whether `get` will find it."""
        ...

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """The tensor of each, on the CPU, or None."""
        ...

    def put(self, subject: S, tensor: Tensor) -> Tensor:
        """Keep `tensor`, on the CPU, if there is room; returns it as `get` would, kept or not."""
        ...

    def share(self) -> None:
        """Let other processes see what this one kept, and see theirs."""
        ...


class NoCache(Generic[S]):
    """Everything is encoded each time."""

    is_lasting = False

    def has(self, subject: S) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """None of them."""
        return [None] * len(subjects)

    def put(self, subject: S, tensor: Tensor) -> Tensor:  # noqa: ARG002
        """`tensor` itself."""
        return tensor

    def share(self) -> None:
        """Nothing to share."""


class ByteBudget:
    """Bytes that several caches share."""

    def __init__(self, free_bytes: int):
        self.free_bytes = free_bytes


class MemoryCache(Generic[S]):
    """Tensors on the CPU, until the room is used up; then no more are taken in.

    Nothing is ever dropped: an epoch reads every row once, so the longest unused is the next one needed,
    and the loader may rely on what it was told is here.
    """

    is_lasting = False

    def __init__(self, room: ByteBudget):
        self._room = room
        self._tensors: dict[Hashable, Tensor] = {}

    def has(self, subject: S) -> bool:
        """See EncodingCache."""
        return subject in self._tensors

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """See EncodingCache."""
        return [self._tensors.get(subject) for subject in subjects]

    def put(self, subject: S, tensor: Tensor) -> Tensor:
        """See EncodingCache."""
        if subject not in self._tensors and tensor.nbytes <= self._room.free_bytes:
            # A slice of a batch would keep the whole batch alive.
            self._tensors[subject] = tensor.clone()
            self._room.free_bytes -= tensor.nbytes
        return tensor

    def share(self) -> None:
        """Memory is this process's own."""


class PersistentCache(Generic[S]):
    """Records of one kind in a cache.

    Args:
        key_of: key and sample of a subject; the key may cost reading the subject's file once.
        stored_as: number format of the records; None keeps the encoder's.
        adds: off where new subjects never end, so that keeping them would only fill the disk.
    """

    def __init__(
        self,
        cache: Cache,
        kind: RecordKind,
        key_of: Callable[[S], tuple[bytes, bytes]],
        stored_as: torch.dtype | None,
        adds: bool = True,
    ):
        self.adds = self.is_lasting = adds
        self.records = cache
        self.key_of = key_of
        self._kind = kind
        self._stored_as = stored_as
        self._seen: dict[Hashable, tuple[bytes, bytes]] = {}

    def knows(self, subject: S) -> bool:
        """Whether there is a record, by the index alone."""
        known = self.key_of(subject)
        self._seen[subject] = known
        return self.records.knows(*known)

    def has(self, subject: S) -> bool:
        """See EncodingCache; called where reading ahead happens, so that `get` finds the pages in memory."""
        known = self.key_of(subject)
        self._seen[subject] = known
        return self.records.has(*known)

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """See EncodingCache."""
        return [self._get(subject) for subject in subjects]

    def _get(self, subject: S) -> Tensor | None:
        found = self.records.get(*(self._seen.get(subject) or self.key_of(subject)))
        if found is None:
            return None
        self._seen.pop(subject, None)
        return to_tensor(found.payload, found.dtype, found.shape)

    def put(self, subject: S, tensor: Tensor) -> Tensor:
        """If the subject changed since `has`, the tensor is not cached: its key would be wrong."""
        tensor = tensor.to(self._stored_as or tensor.dtype)
        known = self._seen.pop(subject, None)
        key, sample = self.key_of(subject)
        if self.adds and (known is None or known == (key, sample)):
            array, dtype = self._kind.to_array(tensor)
            self.records.put(self._kind.name, key, sample, array, dtype)
        return tensor

    def share(self) -> None:
        """See EncodingCache."""
        self.records.seal()
        self.records.refresh()


class ConditioningCache:
    """The named tensors of each caption, every name in a cache of its own."""

    def __init__(self, caches: Mapping[str, EncodingCache[str]]):
        self._caches = caches
        self.is_lasting = all(cache.is_lasting for cache in caches.values())

    @property
    def on_disk(self) -> list[PersistentCache[str]]:
        """The caches of every name, if they are in the cache on disk; else none."""
        return [cache for cache in self._caches.values() if isinstance(cache, PersistentCache)]

    def knows(self, caption: str) -> bool:
        """True if the cache on disk has every tensor of `caption`, by its index alone."""
        return all(cache.knows(caption) for cache in self.on_disk)

    def get(self, captions: Sequence[str]) -> list[Conditioning | None]:
        """The tensors of each caption; None if one is missing."""
        columns = [cache.get(captions) for cache in self._caches.values()]
        rows = (dict(zip(self._caches, row, strict=True)) for row in zip(*columns, strict=True))
        return [_whole(row) for row in rows]

    def put(self, caption: str, tensors: Conditioning) -> Conditioning:
        """Keep every tensor of `caption`; returns them as `get` would."""
        return {name: cache.put(caption, tensors[name]) for name, cache in self._caches.items()}

    def share(self) -> None:
        """Let other processes see what this one kept, and see theirs."""
        for cache in self._caches.values():
            cache.share()


def _whole(row: Mapping[str, Tensor | None]) -> Conditioning | None:
    present = {name: tensor for name, tensor in row.items() if tensor is not None}
    return present if len(present) == len(row) else None
