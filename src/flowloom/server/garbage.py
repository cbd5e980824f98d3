"""Garbage collection: a full one stops every thread, so it waits until no request is worked on.

While a large file is parsed, the interpreter would otherwise collect again and again among all that the
parser has made so far.
"""

from __future__ import annotations

import gc
import time

from flowloom.server.off_loop import is_idle

LONG_S = 0.02
WAITS_S = 300.0
_NEVER = 2**31 - 1


class Collector:
    """Does full collections in place of the interpreter, which goes on with the short ones."""

    def __init__(self) -> None:
        first, second, _ = gc.get_threshold()
        gc.set_threshold(first, second, _NEVER)
        self._collected_at = time.monotonic()
        self.collect()

    def look(self) -> None:
        """Collect, unless requests are worked on; those that never end put it off for WAITS_S only."""
        if is_idle() or time.monotonic() - self._collected_at > WAITS_S:
            self.collect()

    def collect(self) -> None:
        """Collect, and spare later collections what stays where that is much."""
        began = time.monotonic()
        gc.collect()
        self._collected_at = time.monotonic()
        if not gc.get_freeze_count() or self._collected_at - began > LONG_S:
            gc.freeze()
