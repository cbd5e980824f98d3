"""Following growing files: events by number, the log by byte offset."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from pydantic import BaseModel, Field

from flowloom.files import open_plain
from flowloom.json_types import is_object
from flowloom.server.off_loop import off_loop

_POLL_S = 0.1
_PING_EVERY_S = 15.0
_CHUNK_BYTES = 262_144
_MAX_DAMAGED = 10_000
"""Limit for the number of damaged lines that are counted."""
_KIND = re.compile(r"[\w.-]{1,100}", re.ASCII)


class TailEvent(NamedTuple):
    """An event and its line in the file."""

    seq: int
    event: dict[str, Any]
    line: bytes


class EventTail:
    """Reads the events after number `seq`, each once, even if the file is truncated, damaged or rewritten."""

    def __init__(self, path: Path, seq: int = -1):
        self.path, self.seq = path, seq
        self.damaged: set[int] = set()
        """Offsets of invalid lines that are followed by events; they are skipped."""
        self._offset: int | None = None
        self._last = b"", 0
        """The newest event's line and offset, to detect that the file was rewritten."""

    def read(self) -> list[TailEvent]:
        """Some of the new events, at most one chunk."""
        while True:
            found, has_more = self.read_chunk()
            if found or not has_more:
                return found

    def read_chunk(self) -> tuple[list[TailEvent], bool]:
        """The new events of the next chunk, and True if there is more to read now.

        Raises:
            OSError: the file exists and cannot be read.
        """
        try:
            file = open_plain(self.path)
        except FileNotFoundError:
            return [], False
        with file:
            size = file.seek(0, os.SEEK_END)
            before = self._offset
            if before is None or size < before:
                # The first read, or the engine truncated lines that a crash had damaged.
                before = self._offset = self._find_start(file, size)
            if before >= size:
                return [], False
            found = self._chunk(file, before)
            return found, self._offset is None or (self._offset > before and self._offset < size)

    def _chunk(self, file: BinaryIO, offset: int) -> list[TailEvent]:
        """Read the new events of the chunk at `offset`, and move on to the end of its last event."""
        file.seek(offset)
        data = file.read(_CHUNK_BYTES)
        is_full = len(data) == _CHUNK_BYTES
        if is_full and b"\n" not in data:
            self.damaged.add(offset)
            self._offset = offset + len(data) + _skip_line(file)
            return []
        events: list[TailEvent] = []
        damaged: set[int] = set()  # invalid lines since the last event
        line_end = last_event_end = offset
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            line_start, line_end = line_end, line_end + len(line)
            event = _parsed(line)
            if event is None:
                damaged.add(line_start)
                continue
            if event["seq"] > self.seq:
                is_gap = event["seq"] != self.seq + 1 and not events
                if is_gap and not self._is_unchanged(file):
                    self._offset = None  # the file was rewritten: find the start again
                    return []
                self.seq, self._last = event["seq"], (line, line_start)
                events.append(TailEvent(self.seq, event, line.rstrip()))
            last_event_end = line_end
            if len(self.damaged) < _MAX_DAMAGED:
                self.damaged |= damaged
            damaged.clear()
        # The next engine truncates invalid lines at the end: read them again, unless they fill a chunk.
        is_all_damaged = is_full and last_event_end == offset
        self._offset = line_end if is_all_damaged else last_event_end
        return events

    def _is_unchanged(self, file: BinaryIO) -> bool:
        """True if the last event is still at its offset: then numbers are missing from the file."""
        line, start = self._last
        file.seek(start)
        return file.read(len(line)) == line

    def _find_start(self, file: BinaryIO, size: int) -> int:
        """An offset at or before the end of the events up to `seq`, by binary search: numbers only grow."""
        low, high = 0, size if self.seq >= 0 else 0
        while high - low > _CHUNK_BYTES:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline(_CHUNK_BYTES)
            start, event = file.tell(), _parsed(file.readline(_CHUNK_BYTES))
            if event is None or start >= high:
                break
            low, high = (start, high) if event["seq"] <= self.seq else (low, middle)
        self._last = b"", 0
        return low


def _skip_line(file: BinaryIO) -> int:
    """Read the rest of an overlong line, which is not an event, in parts. Return its size."""
    num = 0
    while part := file.readline(_CHUNK_BYTES):
        num += len(part)
        if part.endswith(b"\n"):
            break
    return num


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The event of a line, or None if the line is damaged or not ours."""
    try:
        event = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not is_object(event) or not is_number(event.get("seq"), whole=True):
        return None
    # The kind becomes a line of the stream, and must not contain line breaks.
    kind = event.get("kind")
    return event if isinstance(kind, str) and _KIND.fullmatch(kind) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def is_number(value: Any, *, whole: bool = False) -> TypeGuard[int | float]:
    """True if `value` is a number that every JSON reader can represent."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return -(2**53) < value < 2**53 if isinstance(value, int) else math.isfinite(value)


async def frames(tail: EventTail, is_closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    """An endless stream of server-sent events, numbered for `Last-Event-ID`.

    Each chunk is read in a thread, so that a disconnected client is noticed in between.
    """
    yield b"retry: 1000\n\n"
    sent_at = time.monotonic()
    while not is_closing():
        data, has_more = await off_loop("following", _next_frames, tail)
        if not data and time.monotonic() - sent_at > _PING_EVERY_S:
            data = b": still here\n\n"
        if data:
            yield data
            sent_at = time.monotonic()
        if not has_more:
            await asyncio.sleep(_POLL_S)


def _next_frames(tail: EventTail) -> tuple[bytes, bool]:
    """The encoded events of the next chunk, and True if there is more to read now."""
    try:
        found, has_more = tail.read_chunk()
    except OSError:  # something else is in its place; the run's state reports it
        return b"", False
    return b"".join(map(_frame, found)), has_more


def _frame(found: TailEvent) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (found.seq, found.event["kind"].encode(), found.line)


class LogPart(BaseModel):
    """A part of a log."""

    text: str = Field(examples=["step 100 ...\n"])
    offset: int = Field(description="Offset of the text, in bytes.")
    next_offset: int = Field(description="Offset of the next request.")
    size: int = Field(description="Size of the log, in bytes.")


def read_log(path: Path, offset: int, limit: int) -> LogPart:
    """Up to `limit` bytes from `offset` (negative: from the end), in complete characters."""
    try:
        file = open_plain(path)
    except FileNotFoundError:
        return LogPart(text="", offset=0, next_offset=0, size=0)
    with file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        file.seek(start)
        data = file.read(limit)
    skipped = _num_continuing(data) if start else 0
    data = data[skipped:]
    data = data[: len(data) - _num_cut_off(data)]
    text = data.decode(errors="replace")
    return LogPart(text=text, offset=start + skipped, next_offset=start + skipped + len(data), size=size)


def _num_continuing(data: bytes) -> int:
    """Bytes at the start that continue an earlier character."""
    return next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def _num_cut_off(data: bytes) -> int:
    """Bytes of an incomplete character at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
    return 0
