"""The studio's own tasks, and work on many things one by one: a failure is reported, the rest goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flowloom.server.off_loop import off_loop

REST_AFTER_FAILURE_S = 1.0
_log = logging.getLogger("flowloom")


class PeriodicJobs:
    """PeriodicJobs that are repeated as long as the server lives."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        """What failed the last time, by the task's name; a task that goes well again is taken out."""

    async def repeat(self, name: str, work: Callable[[], object], every_s: float) -> None:
        """Do `work` again and again, in a thread, whatever it raises."""
        while True:
            try:
                await off_loop("own", work)
            except Exception as error:
                self._failed(name, error)
                await asyncio.sleep(REST_AFTER_FAILURE_S)
            else:
                if self.failures.pop(name, None):
                    _log.warning("%s works again", name)
            await asyncio.sleep(every_s)

    def _failed(self, name: str, error: Exception) -> None:
        message = reason_of(error)
        # Once for each fault: a task that is tried again every second would fill the log.
        if self.failures.get(name) != message:
            _log.error("%s failed and is tried again: %s", name, message, exc_info=error)
        self.failures[name] = message


@contextmanager
def isolate_errors(tell: Callable[[str], None]) -> Iterator[None]:
    """A block that works on one of many: whatever it raises is handed to `tell`, and harms no other."""
    try:
        yield
    except Exception as error:
        tell(reason_of(error))


def reason_of(error: Exception) -> str:
    """What happened, in a line: our own errors and the system's by their words, others with their names."""
    text = " ".join(str(error).split())[:1000]
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    return text if type(error).__module__.startswith("flowloom.") else f"{type(error).__name__}: {text}"
