"""Experiment trackers, each in its own thread: a tracker that fails does not end the run.

A tracker may fail to start, fail during the run, or hang at the end. Training never waits for it; at the
end of the run there is a bounded wait for unsent events.
"""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowloom.errors import ConfigError, FlowloomError, one_line
from flowloom.loggers.base import LoggerSpec

CLOSE_S = 120.0
"""For all trackers together, at the end of a run."""
MOST_WAITING = 10_000
"""Events that a tracker may be behind: a hanging one must not fill the memory."""
EVENTS_HAVE_ALL = "events.jsonl has everything."

Say = Callable[..., None]


class Tracker:
    """One tracker; `log` only queues an event."""

    def __init__(self, spec: LoggerSpec, kind: str, run_dir: Path, config: dict[str, Any], emit: Say):
        self.kind = kind
        self._spec, self._run_dir, self._config, self._say = spec, run_dir, config, emit
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._is_given_up = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {kind}", daemon=True)
        self._thread.start()

    def log(self, event: dict[str, Any]) -> None:
        """Queue one event."""
        if self._is_given_up:
            return
        if self._waiting.qsize() < MOST_WAITING:
            self._waiting.put(event)
        else:
            self._give_up(f"does not answer, and is {MOST_WAITING:,} events behind")

    def begin_to_close(self) -> None:
        """End the queue: no event follows."""
        self._waiting.put(None)

    def is_closed_by(self, deadline: float) -> bool:
        """Wait until `deadline` (monotonic clock); True if all events were sent, or it failed."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            return True
        if not self._is_given_up:
            self._give_up("did not send its last events in time")
        return False

    def _work(self) -> None:
        try:
            logger = self._spec.build(self._run_dir, self._config)
            while (event := self._waiting.get()) is not None:
                logger.log(event)
            logger.close()
        except Exception as error:
            # Packages and their servers fail in undocumented ways: none of them may end a run.
            if not self._is_given_up:
                self._give_up(_reason(error))

    def _give_up(self, reason: str) -> None:
        self._is_given_up = True
        hint = f"The run continues without it; {EVENTS_HAVE_ALL}"
        # The disk may be full as well, or the run over.
        with suppress(OSError, ValueError, FlowloomError):
            self._say("warning", message=f"{self.kind}: {reason.rstrip('.')}.", hint=hint)


def _reason(error: Exception) -> str:
    if isinstance(error, ConfigError):
        return " ".join(one_line(problem.text) for problem in error.problems)
    return one_line(str(error)) or type(error).__name__


def close_all(trackers: Sequence[Tracker]) -> None:
    """Wait at most `CLOSE_S` for the trackers' unsent events; the rest is dropped."""
    for tracker in trackers:
        tracker.begin_to_close()
    deadline = time.monotonic() + CLOSE_S
    num_closed = sum(tracker.is_closed_by(deadline) for tracker in trackers)
    if num_closed < len(trackers):
        atexit.register(_leave)


def _leave() -> None:
    """End the process: the packages of trackers that hang would wait again when Python ends.

    Registered last, this runs before what they have registered.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status)


_status = 0


def set_exit_status(status: int) -> None:
    """The exit status of the process if a tracker hangs."""
    global _status
    _status = status
