"""Edits of a data set take turns, and whoever looks is told how far the one is that is being made."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from flowloom.server.problems import ServiceError

T = TypeVar("T")
Phase = Literal["looking", "reading", "writing"]
PATIENCE_S = 2.0
"""An edit waits so long for the one before it."""


class EditUnderWay(ServiceError):
    status, code, title = 409, "edit-under-way", "Captions of this data set are being edited."


class EditCancelled(ServiceError):
    status, code, title = 409, "edit-cancelled", "The edit was cancelled."


@dataclass(frozen=True)
class Stage:
    """How far an edit is that is being made."""

    title: str
    phase: Phase = "looking"
    """The folder is looked over; captions are read, and kept for an undo; captions are written."""
    num_done: int = 0
    num_total: int = 0
    """0: not known yet."""


class EditLock:
    """One edit of a data set after the other, and how far the one is whose turn it is."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        """None: none is under way."""
        self.is_cancelled = False
        """Whether the one that is under way shall end before its time."""
        self._lock = threading.Lock()

    @contextmanager
    def take(self, title: str) -> Iterator[None]:
        """Be the one that edits.

        Raises:
            EditUnderWay: another one does, for longer than a moment.
        """
        if not self._lock.acquire(timeout=PATIENCE_S):
            stage = self.stage or Stage("another edit")
            done = f"{stage.num_done:,} of {stage.num_total:,} captions are done"
            raise EditUnderWay(
                f"{stage.title}: {stage.phase}, {done}.", "Wait for it: GET .../edits/progress."
            )
        try:
            self.stage, self.is_cancelled = Stage(title), False
            yield
        finally:
            self.stage = None
            self._lock.release()

    def cancel(self) -> Stage | None:
        """Have the edit that is under way end; where it is, or None where there is none."""
        self.is_cancelled = True
        return self.stage

    def watch(self, phase: Phase, total: int, each: Iterable[T]) -> Iterator[T]:
        """Pass on `each` of `total`, and tell of it. One that is cancelled while it writes writes no more.

        Raises:
            EditCancelled: it was before it wrote anything.
        """
        for number, one in enumerate(each, start=1):
            if self.is_cancelled and phase == "writing":
                return
            if self.is_cancelled:
                raise EditCancelled(
                    "No caption was changed.", "Make it again, should it be wanted after all."
                )
            if self.stage:
                self.stage = replace(self.stage, phase=phase, num_done=number, num_total=total)
            yield one
