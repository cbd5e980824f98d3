"""Garbage collection. A full collection stops every thread, so it waits until no request is in progress.

Otherwise the interpreter would collect repeatedly while a large file is parsed.
"""

from __future__ import annotations

import gc
import time

from flowloom.server.off_loop import is_idle

LONG_S = 0.02
MAX_WAIT_S = 300.0
_NEVER = 2**31 - 1


class Collector:
    """Runs the full collections; the interpreter keeps running the short ones."""

    def __init__(self) -> None:
        first, second, _ = gc.get_threshold()
        gc.set_threshold(first, second, _NEVER)
        self._collected_at = time.monotonic()
        self.collect()

    def collect_if_idle(self) -> None:
        """Collect unless requests are in progress; endless ones delay it by at most MAX_WAIT_S."""
        if is_idle() or time.monotonic() - self._collected_at > MAX_WAIT_S:
            self.collect()

    def collect(self) -> None:
        """Collect, and exclude the surviving objects from later collections if there are many."""
        began = time.monotonic()
        gc.collect()
        self._collected_at = time.monotonic()
        if not gc.get_freeze_count() or self._collected_at - began > LONG_S:
            gc.freeze()
