"""Page-locked buffers that gradients and updated weights pass through, a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from flowloom.engine.offload.copies import Copies

T = TypeVar("T")

RING_SIZE = 2


class Staging(Generic[T]):
    """A ring of host buffers; each is used again when what it was last used for is done."""

    def __init__(self, copies: Copies, num_bytes: int, finish: Callable[[T], object]):
        self._buffers = [copies.host_buffer(num_bytes) for _ in range(RING_SIZE)]
        self._uses: list[T | None] = [None] * RING_SIZE
        self._next = 0
        self._finish = finish

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """The next free buffer, in the shape of `like`; waits for its last use."""
        self._wait(self._next)
        num_bytes = like.numel() * dtype.itemsize
        return self._buffers[self._next][:num_bytes].view(dtype).view(like.shape)

    def use(self, use: T) -> None:
        """Keep the buffer that was returned last for `use`, until `finish(use)` returns."""
        self._uses[self._next] = use
        self._next = (self._next + 1) % RING_SIZE

    def drain(self) -> None:
        """Wait for every use, the oldest first."""
        for place in (self._next + i for i in range(RING_SIZE)):
            self._wait(place % RING_SIZE)

    def _wait(self, place: int) -> None:
        use, self._uses[place] = self._uses[place], None
        if use is not None:
            self._finish(use)
