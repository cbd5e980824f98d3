"""A byte budget for prefetching. The sample needed next is always admitted: prefetching cannot deadlock."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)
FIRST_GUESS = 2**19
FORGET = 0.02
"""How fast a large object is forgotten when the next ones are smaller."""


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
    """Size of the next object, before the store says it: near the largest of late."""
    _shares: dict[Owner, int] = field(default_factory=dict)
    _waiting: OrderedDict[Owner, tuple[int, asyncio.Future[None]]] = field(default_factory=OrderedDict)
    _wanted: set[Owner] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.guess = min(FIRST_GUESS, self.limit / 8)

    async def reserve(self, owner: Owner, size: int | None = None) -> None:
        """Wait until `owner` may hold `size` bytes, or as many as objects have of late."""
        size = int(self.guess) if size is None else size
        if not self._waiting and self.fits(owner, size):
            return
        if owner in self._wanted:
            self.force(owner, size)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[owner] = (size, turn)
        try:
            await turn
        finally:
            self._waiting.pop(owner, None)

    def fits(self, owner: Owner, size: int) -> bool:
        """Make it `size` bytes that `owner` holds, if there is room or it is waited for."""
        others = self.held - self._shares.get(owner, 0)
        if others + size > self.limit and others and owner not in self._wanted:
            return False
        self.force(owner, size)
        return True

    def force(self, owner: Owner, size: int) -> None:
        """Make it `size` bytes that `owner` holds."""
        self._hold(owner, size)
        self._serve()

    def learn(self, size: int) -> None:
        """An object of `size` bytes came."""
        self.guess = max(size, (1 - FORGET) * self.guess + FORGET * size)

    def want(self, owner: Owner) -> None:
        """The content of `owner` is waited for."""
        self._wanted.add(owner)
        if owner in self._waiting:
            size, turn = self._waiting.pop(owner)
            self._grant(owner, size, turn)

    def release(self, owner: Owner) -> None:
        """The content of `owner` has been taken, or nobody wants it any more."""
        self._wanted.discard(owner)
        self.held -= self._shares.pop(owner, 0)
        self._serve()

    def _serve(self) -> None:
        while self._waiting:
            owner, (size, turn) = next(iter(self._waiting.items()))
            others = self.held - self._shares.get(owner, 0)
            if others + size > self.limit and others:
                return
            del self._waiting[owner]
            self._grant(owner, size, turn)

    def _hold(self, owner: Owner, size: int) -> None:
        self.held += size - self._shares.get(owner, 0)
        self._shares[owner] = size
        self.peak = max(self.peak, self.held)

    def _grant(self, owner: Owner, size: int, turn: asyncio.Future[None]) -> None:
        self._hold(owner, size)
        if not turn.done():
            turn.set_result(None)
