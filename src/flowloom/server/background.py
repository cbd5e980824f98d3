"""Periodic jobs of the server, and error isolation for work on many items."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager

from flowloom.server.off_loop import off_loop

REST_AFTER_FAILURE_S = 1.0
_log = logging.getLogger("flowloom")


class PeriodicJobs:
    """Jobs that are repeated as long as the server runs."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        """The last error of each job that fails, by name. A job that recovers is removed."""

    async def repeat(self, name: str, work: Callable[[], object], every_s: float) -> None:
        """Call `work` periodically in a thread. Errors are logged and do not end it."""
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
        # Once per error: a job retried every second would fill the log.
        if self.failures.get(name) != message:
            _log.error("%s failed and is retried: %s", name, message, exc_info=error)
        self.failures[name] = message


@contextmanager
def isolate_errors(report: Callable[[str], None]) -> Generator[None]:
    """Run a block that handles one of many items: its error goes to `report` and affects no other item."""
    try:
        yield
    except Exception as error:
        report(reason_of(error))


def reason_of(error: Exception) -> str:
    """An error in one line: message only for Flowloom and system errors, with the type for others."""
    text = " ".join(str(error).split())[:1000]
    if isinstance(error, OSError) and error.strerror:
        path = f"{error.filename}: " if error.filename else ""
        return f"{path}{error.strerror}"
    return text if type(error).__module__.startswith("flowloom.") else f"{type(error).__name__}: {text}"
