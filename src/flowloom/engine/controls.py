"""Requests to a running engine: stop signals, and the files in the run directory's `control` folder."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.stopping import StopSignals
from flowloom.run.directory import RunDir

SECONDS_BETWEEN_CHECKS = 1.0
"""Of the check that the run directory still exists."""


class Requests(NamedTuple):
    """Requests that take effect after the current step, the same on all ranks."""

    checkpoint: bool
    preview: bool


class Controls:
    """Reads the requests to a run; all ranks act on the same ones."""

    def __init__(self, run_dir: RunDir, signals: StopSignals, ranks: Ranks, seconds_before: float):
        self.run_dir, self.signals, self.ranks = run_dir, signals, ranks
        self.must_stop = False
        """True on all ranks once any of them was asked to stop."""
        self._started = time.monotonic() - seconds_before
        self._checked_at = 0.0

    @property
    def seconds(self) -> float:
        """Time spent training, earlier sessions included."""
        return time.monotonic() - self._started

    def poll(self) -> tuple[Requests, float]:
        """The requests of all ranks, and their mean training time in seconds; sets `must_stop`."""
        self._check_run_dir()
        stop, save, preview = (
            self.ranks.is_first and self.run_dir.take_control(name)
            for name in ("stop", "checkpoint", "sample")
        )
        *asked, seconds = self.ranks.total(stop or self.signals.is_wished, save, preview, self.seconds)
        self.must_stop, *requests = map(bool, asked)
        return Requests(*requests), seconds / self.ranks.size

    def stops_waiting(self) -> bool:
        """True if a single rank should stop while it waits for data; several ranks agree in `poll`."""
        self._check_run_dir()
        if self.ranks.size == 1 and not self.must_stop:
            self.must_stop = self.signals.is_wished or self.run_dir.take_control("stop")
        return self.must_stop

    def interruptible(self) -> AbstractContextManager[None]:
        """Long work that a stop may abandon. Of several ranks none may, or the others would wait for it."""
        return self.signals.interruptible() if self.ranks.size == 1 else nullcontext()

    def _check_run_dir(self) -> None:
        """Raise RunError if the run directory was deleted."""
        now = time.monotonic()
        if self.ranks.is_first and now - self._checked_at > SECONDS_BETWEEN_CHECKS:
            self._checked_at = now
            self.run_dir.require_in_place()
