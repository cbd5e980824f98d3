"""SIGINT, SIGTERM and SIGHUP: the run ends as `stopped`, with a checkpoint if there is something to save.

The first signal lets the step in progress end. If that takes longer than `GRACE_S` (blocks are compiled,
thousands of captions are encoded), or at a second signal, that work is abandoned: `Abandoned` is raised in
the main thread, but only within `interruptible`, where nothing that a checkpoint holds changes.
A third signal has its usual effect. Imports no torch: signals are caught from the start of the process.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_S = 5.0
"""For the step in progress; shorter than supervisors wait before they kill (docker: 10 s)."""
ECHO_S = 0.5
"""torchrun and terminals deliver the same signal twice: within this time both count as one."""

_SAID = (
    b"\nStopping after this step. A second signal abandons the step; what was trained before it is saved.\n",
    b"\nAbandoning this step. A third signal ends the process without saving.\n",
)


class Abandoned(BaseException):
    """The work in progress was abandoned for a stop. Not an Exception, so that libraries do not handle it."""


class StopSignals:
    """The stop request by a signal, and the permission to interrupt the current work."""

    def __init__(self, grace_s: float | None = None):
        self.grace_s = GRACE_S if grace_s is None else grace_s
        self.is_wished = False
        self._count = 0
        self._asked_at = float("-inf")
        self._abandon_at = float("inf")
        self._num_interruptible = 0
        self._num_shielded = 0
        self._is_committed = False
        self._kept: dict[int, Any] = {}

    @contextmanager
    def listening(self) -> Generator[StopSignals]:
        """Catch the signals within a `with` block; threads other than the main one do nothing."""
        if threading.current_thread() is not threading.main_thread() or self._kept:
            yield self
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup a hang-up stays ignored. An interrupt counts even if a shell that started the run in
            # the background had it ignored: it was sent to this process on purpose.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._kept[number] = signal.signal(number, self._ask)
        self._kept[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._look)
        try:
            yield self
        finally:
            if self.is_wished:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._restore()

    @contextmanager
    def interruptible(self, *, at_once: bool = False) -> Generator[None]:
        """Context of work that may be abandoned: after the grace period, or at once with `at_once`.

        Raises:
            Abandoned: the work was abandoned.
        """
        grace_s = self.grace_s
        self.grace_s = 0.0 if at_once else grace_s
        self._num_interruptible += 1
        try:
            if at_once and self.is_wished:
                self._abandon_at = time.monotonic()
            self._look()
            yield
        finally:
            self._num_interruptible -= 1
            self._is_committed = False
            self.grace_s = grace_s

    @contextmanager
    def shielded(self) -> Generator[None]:
        """Context of work that must not be interrupted; other threads never are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._num_shielded += 1
        try:
            yield
        finally:
            self._num_shielded -= 1
        self._look()

    @contextmanager
    def committing(self) -> Generator[None]:
        """Context of work that must not be interrupted, nor the rest of the surrounding interruptible work:
        a step whose weights have changed is reported before the run ends."""
        self._is_committed = True
        yield

    @property
    def seconds_since_request(self) -> float | None:
        """Time since the last signal; None without one."""
        return time.monotonic() - self._asked_at if self.is_wished else None

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._asked_at < ECHO_S:
            return
        self._asked_at = now
        self._count += 1
        self.is_wished = True
        if self._count > 2:
            self._restore()
            os.kill(os.getpid(), number)
            return
        # Not through sys.stderr: the signal may have interrupted a write to it.
        os.write(2, _SAID[self._count - 1])
        self._abandon_at = min(self._abandon_at, now + (self.grace_s if self._count == 1 else 0.0))
        self._look()

    def _look(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Abandon the work if the grace period is over and the work allows it; else check again later."""
        if not self.is_wished:
            return
        left = self._abandon_at - time.monotonic()
        if left > 0:
            if self._kept:
                signal.setitimer(signal.ITIMER_REAL, left)
        elif self._num_interruptible and not self._num_shielded and not self._is_committed:
            raise Abandoned

    def _restore(self) -> None:
        for number, handler in self._kept.items():
            signal.signal(number, handler)
        self._kept = {}
