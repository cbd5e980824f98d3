"""Removal of credentials from the studio's own log, tracebacks included."""

from __future__ import annotations

import logging

from flowloom.printable import printable


class PrintableFormatter(logging.Formatter):
    """Wraps a formatter and removes credentials from its output."""

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        return printable(self._inner.format(record))


def keep_logs_printable() -> None:
    """Install the formatter in every handler of the server's log."""
    handlers = [*logging.getLogger("uvicorn").handlers, *logging.getLogger().handlers]
    for handler in (*handlers, *filter(None, [logging.lastResort])):
        if not isinstance(handler.formatter, PrintableFormatter):
            handler.setFormatter(PrintableFormatter(handler.formatter or logging.Formatter()))
