"""A byte budget for prefetching. The sample needed next is always admitted: it cannot deadlock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)
FIRST_GUESS = 2**19
FORGET = 0.02
"""Rate at which the guess decreases after a large object."""


@dataclass
class MemoryBudget(Generic[Owner]):
    """Bytes that owners hold, at most `limit` together. Used on one event loop only.

    Owners are served in order. An owner whose content is needed now goes first and may exceed the limit:
    otherwise it could wait for memory that only its own progress frees.
    """

    limit: int
    held: int = 0
    peak: int = 0
    guess: float = field(init=False)
    """Expected size of the next object, near the largest recent one."""
    _shares: dict[Owner, int] = field(default_factory=dict)
    _waiting: OrderedDict[Owner, tuple[int, asyncio.Future[None]]] = field(default_factory=OrderedDict)
    _wanted: set[Owner] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.guess = min(FIRST_GUESS, self.limit / 8)

    async def reserve(self, owner: Owner, size: int | None = None) -> None:
        """Wait until `owner` may hold `size` bytes, by default the guess."""
        size = int(self.guess) if size is None else size
        if not self._waiting and self.fits(owner, size):
            return
        if owner in self._wanted:
            self.force(owner, size)
            return
        admission = asyncio.get_running_loop().create_future()
        self._waiting[owner] = (size, admission)
        try:
            await admission
        finally:
            self._waiting.pop(owner, None)

    def fits(self, owner: Owner, size: int) -> bool:
        """Let `owner` hold `size` bytes if the budget has room or its content is needed now."""
        others = self.held - self._shares.get(owner, 0)
        if others + size > self.limit and others and owner not in self._wanted:
            return False
        self.force(owner, size)
        return True

    def force(self, owner: Owner, size: int) -> None:
        """Let `owner` hold `size` bytes."""
        self._hold(owner, size)
        self._serve()

    def learn(self, size: int) -> None:
        """Update the guess after an object of `size` bytes."""
        self.guess = max(size, (1 - FORGET) * self.guess + FORGET * size)

    def want(self, owner: Owner) -> None:
        """Serve `owner` first, because its content is needed now."""
        self._wanted.add(owner)
        if owner in self._waiting:
            size, admission = self._waiting.pop(owner)
            self._grant(owner, size, admission)

    def release(self, owner: Owner) -> None:
        """Free the bytes of `owner`, whose content was taken or is no longer needed."""
        self._wanted.discard(owner)
        self.held -= self._shares.pop(owner, 0)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            owner, (size, admission) = next(iter(self._waiting.items()))
            others = self.held - self._shares.get(owner, 0)
            if others + size > self.limit and others:
                return
            del self._waiting[owner]
            self._grant(owner, size, admission)

    def _hold(self, owner: Owner, size: int) -> None:
        self.held += size - self._shares.get(owner, 0)
        self._shares[owner] = size
        self.peak = max(self.peak, self.held)

    def _grant(self, owner: Owner, size: int, admission: asyncio.Future[None]) -> None:
        self._hold(owner, size)
        if not admission.done():
            admission.set_result(None)
