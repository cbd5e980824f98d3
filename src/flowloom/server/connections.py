"""Connections: a time limit for headers, a maximum number, and an end for clients that stop reading."""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEADERS_WITHIN_S = 15.0
STALLED_AFTER_S = 60.0
MOST_FILES = 65_536
MOST_CONNECTIONS = 1024
SPARE_FILES = 128


def raise_file_limit() -> None:
    """Raise this process's limit of open files, up to MOST_FILES."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < limit:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def most_connections() -> int:
    """Maximum number of connections. Each may open another file, and SPARE_FILES are left for other uses."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(16, min(MOST_CONNECTIONS, (soft - SPARE_FILES) // 2))


class Connection(HttpToolsProtocol):
    """One connection. If there are too many, those without complete headers are closed first."""

    cycle: RequestResponseCycle | None  # uvicorn declares no None, which it is before the first request
    _waiting: dict[Connection, None] = {}
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            oldest = next(iter(self._waiting), self)
            oldest.transport.abort()
        if not transport.is_closing():
            self._await_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        if self._stall:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def _await_headers(self) -> None:
        self._stop_waiting()
        self._waiting[self] = None
        self._timer = self.loop.call_later(HEADERS_WITHIN_S, self.transport.abort)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _watch(self, left: int) -> None:
        """Close the connection if the client reads nothing for STALLED_AFTER_S."""

        def check() -> None:
            now_left = self.transport.get_write_buffer_size()
            if now_left >= left:
                self.transport.abort()
            else:
                self._watch(now_left)

        self._stall = self.loop.call_later(STALLED_AFTER_S, check)
