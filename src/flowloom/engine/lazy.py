"""A network that is opened when it is first needed, and can be freed again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Lazy(Generic[T]):
    """The result of `opening`, held from the first `get` until `free`."""

    def __init__(self, opening: Callable[[], T]):
        self._opening = opening
        self._thing: T | None = None
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """True while it takes memory."""
        return self._thing is not None

    def get(self) -> T:
        """The network, opened if it is not open."""
        with self._lock:
            if self._thing is None:
                self._thing = self._opening()
            return self._thing

    def free(self) -> None:
        """Free its memory; the next `get` opens it again."""
        with self._lock:
            if self._thing is None:
                return
            self._thing = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def opened(thing: T) -> Lazy[T]:
    """A `Lazy` that already holds `thing`."""
    lazily = Lazy(lambda: thing)
    lazily.get()
    return lazily
