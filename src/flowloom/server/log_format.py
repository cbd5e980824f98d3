"""The studio's own log holds no credentials, whatever a library or a traceback says."""

from __future__ import annotations

import logging

from flowloom.printable import printable


class PrintableFormatter(logging.Formatter):
    """Another formatter's text as it may be printed, tracebacks included."""

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        return printable(self._inner.format(record))


def keep_logs_printable() -> None:
    """Have every handler of the server's log write only what may be printed."""
    handlers = [*logging.getLogger("uvicorn").handlers, *logging.getLogger().handlers]
    for handler in (*handlers, *filter(None, [logging.lastResort])):
        if not isinstance(handler.formatter, PrintableFormatter):
            handler.setFormatter(PrintableFormatter(handler.formatter or logging.Formatter()))
