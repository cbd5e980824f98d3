"""The lock of a dataset: one edit at a time, with progress and cancellation."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from flowloom.server.problems import ServiceError

T = TypeVar("T")
Phase = Literal["scanning", "reading", "writing"]
PATIENCE_S = 2.0
"""Time that an edit waits for another one."""


class EditUnderWay(ServiceError):
    status, code, title = 409, "edit-under-way", "Captions of this dataset are being edited."


class EditCancelled(ServiceError):
    status, code, title = 409, "edit-cancelled", "The edit was cancelled."


@dataclass(frozen=True)
class Stage:
    """Progress of the edit that is being made."""

    title: str
    phase: Phase = "scanning"
    """The folder is scanned; captions are read into the journal; captions are written."""
    num_done: int = 0
    num_total: int = 0
    """0: not known yet."""


class EditLock:
    """Lets one edit of a dataset run at a time, and reports its progress."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        """None: no edit is being made."""
        self.is_cancelled = False
        """True if the edit that is being made should end early."""
        self._lock = threading.Lock()

    @contextmanager
    def take(self, title: str) -> Generator[None]:
        """Hold the lock during an edit.

        Raises:
            EditUnderWay: another edit holds it for longer than PATIENCE_S.
        """
        if not self._lock.acquire(timeout=PATIENCE_S):
            stage = self.stage or Stage("another edit")
            done = f"{stage.num_done:,} of {stage.num_total:,} captions are done"
            raise EditUnderWay(
                f"{stage.title}: {stage.phase}, {done}.", "Wait until it ends: GET .../edits/progress."
            )
        try:
            self.stage, self.is_cancelled = Stage(title), False
            yield
        finally:
            self.stage = None
            self._lock.release()

    def cancel(self) -> Stage | None:
        """Cancel the edit that is being made; returns its stage, or None if there is no edit."""
        self.is_cancelled = True
        return self.stage

    def watch(self, phase: Phase, total: int, items: Iterable[T]) -> Iterator[T]:
        """Pass on `items`, `total` in number, and report progress. A cancelled edit writes no more.

        Raises:
            EditCancelled: the edit was cancelled before it wrote anything.
        """
        for number, item in enumerate(items, start=1):
            if self.is_cancelled and phase == "writing":
                return
            if self.is_cancelled:
                raise EditCancelled("No caption was changed.", "To make the edit, send it again.")
            if stage := self.stage:
                self.stage = replace(stage, phase=phase, num_done=number, num_total=total)
            yield item
