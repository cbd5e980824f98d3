"""Caches of encoded images and captions: none, in memory, or persistent (on disk or in a store)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from flowloom.config.run import RunConfig
from flowloom.data.cache.records.base import RecordKind, to_tensor
from flowloom.data.cache.store import Cache
from flowloom.data.subjects import Encoded, Prompt
from flowloom.models.family import Conditioning, family_for, has_autoencoder

S = TypeVar("S", bound=Hashable, contravariant=True)


class EncodingCache(Protocol[S]):
    """The encoded tensor of each subject: an image in its bucket, or a caption."""

    is_lasting: bool
    """True if the tensors outlive the process, so that the encoder can be freed."""

    def has(self, subject: S) -> bool:
        """True if `get` will return it; may prefetch it."""
        ...

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """The tensor of each, on the CPU, or None."""
        ...

    def put(self, subject: S, tensor: Tensor) -> Tensor:
        """Cache `tensor`, on the CPU, if there is room; return it as `get` would, cached or not."""
        ...

    def share(self) -> None:
        """Exchange new entries with other processes."""
        ...


class NoCache(Generic[S]):
    """Everything is encoded each time."""

    is_lasting = False

    def has(self, subject: S) -> bool:  # noqa: ARG002
        """False."""
        return False

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """None for each."""
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
    """Tensors on the CPU, until the budget is used up; then no more are added.

    Nothing is evicted: an epoch reads every row once, so the least recently used entry is needed next.
    """

    is_lasting = False

    def __init__(self, budget: ByteBudget):
        self._budget = budget
        self._tensors: dict[Hashable, Tensor] = {}

    def has(self, subject: S) -> bool:
        """See EncodingCache."""
        return subject in self._tensors

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """See EncodingCache."""
        return [self._tensors.get(subject) for subject in subjects]

    def put(self, subject: S, tensor: Tensor) -> Tensor:
        """See EncodingCache."""
        if subject not in self._tensors and tensor.nbytes <= self._budget.free_bytes:
            # A slice of a batch would keep the whole batch alive.
            self._tensors[subject] = tensor.clone()
            self._budget.free_bytes -= tensor.nbytes
        return tensor

    def share(self) -> None:
        """Do nothing: memory is not shared."""


class PersistentCache(Generic[S]):
    """Records of one kind in a cache on disk or in a store.

    Args:
        key_of: returns key and sample of a subject; may read the subject's file once.
        stored_as: number format of the records; None keeps the encoder's.
        adds: False if new subjects never end, so that adding them would only fill the disk.
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
        self._keys: dict[Hashable, tuple[bytes, bytes]] = {}

    def knows(self, subject: S) -> bool:
        """True if the index has a record; the record is not read."""
        keys = self.key_of(subject)
        self._keys[subject] = keys
        return self.records.knows(*keys)

    def has(self, subject: S) -> bool:
        """See EncodingCache. Prefetches the record, so that `get` finds its pages in memory."""
        keys = self.key_of(subject)
        self._keys[subject] = keys
        return self.records.has(*keys)

    def get(self, subjects: Sequence[S]) -> list[Tensor | None]:
        """See EncodingCache."""
        return [self._get(subject) for subject in subjects]

    def _get(self, subject: S) -> Tensor | None:
        record = self.records.get(*(self._keys.get(subject) or self.key_of(subject)))
        if record is None:
            return None
        self._keys.pop(subject, None)
        return to_tensor(record.payload, record.dtype, record.shape)

    def put(self, subject: S, tensor: Tensor) -> Tensor:
        """If the subject changed since `has`, the tensor is not cached: its key would be wrong."""
        tensor = tensor.to(self._stored_as or tensor.dtype)
        earlier = self._keys.pop(subject, None)
        key, sample = self.key_of(subject)
        if self.adds and (earlier is None or earlier == (key, sample)):
            array, dtype = self._kind.to_array(tensor)
            self.records.put(self._kind.name, key, sample, array, dtype)
        return tensor

    def share(self) -> None:
        """See EncodingCache."""
        self.records.seal()
        self.records.refresh()


class ConditioningCache:
    """The named tensors of each caption, with one cache per name."""

    def __init__(self, caches: Mapping[str, EncodingCache[Prompt]]):
        self._caches = caches
        self.is_lasting = all(cache.is_lasting for cache in caches.values())

    @property
    def on_disk(self) -> list[PersistentCache[Prompt]]:
        """The caches of all names if they are on disk; otherwise an empty list."""
        return [cache for cache in self._caches.values() if isinstance(cache, PersistentCache)]

    def has(self, caption: Prompt) -> bool:
        """True if `get` will return every tensor of `caption`."""
        return all(cache.has(caption) for cache in self._caches.values())

    def knows(self, caption: Prompt) -> bool:
        """True if the cache on disk has every tensor of `caption`, by its index alone."""
        return all(cache.knows(caption) for cache in self.on_disk)

    def get(self, captions: Sequence[Prompt]) -> list[Conditioning | None]:
        """The tensors of each caption; None if one is missing."""
        columns = [cache.get(captions) for cache in self._caches.values()]
        rows = (dict(zip(self._caches, row, strict=True)) for row in zip(*columns, strict=True))
        return [_if_complete(row) for row in rows]

    def put(self, caption: Prompt, tensors: Conditioning) -> Conditioning:
        """Cache every tensor of `caption`; returns them as `get` would."""
        return {name: cache.put(caption, tensors[name]) for name, cache in self._caches.items()}

    def share(self) -> None:
        """Exchange new entries with other processes."""
        for cache in self._caches.values():
            cache.share()


def _if_complete(row: Mapping[str, Tensor | None]) -> Conditioning | None:
    present = {name: tensor for name, tensor in row.items() if tensor is not None}
    return present if len(present) == len(row) else None


class EncodingCaches(NamedTuple):
    """The caches of the two encoders."""

    latents: EncodingCache[Encoded]
    texts: ConditioningCache


def caches_without_disk(config: RunConfig) -> EncodingCaches:
    """The caches that `config.cache` selects, with NoCache in place of a persistent one."""
    budget, kinds = ByteBudget(config.cache.limit_mib * 2**20), config.cache
    family = family_for(config.model)
    return EncodingCaches(
        MemoryCache(budget) if kinds.latents == "memory" and has_autoencoder(family) else NoCache(),
        ConditioningCache(
            {
                name: MemoryCache(budget) if kinds.text == "memory" else NoCache()
                for name in family.conditioning
            }
        ),
    )
