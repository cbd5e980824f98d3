"""Following files that grow: events by their numbers, the log by its bytes."""

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
from flowloom.server.off_loop import off_loop

_LOOK_EVERY_S = 0.1
_PING_EVERY_S = 15.0
_CHUNK_BYTES = 262_144
_MOST_DAMAGED = 10_000
"""Damaged lines of a file that are counted."""
_KIND = re.compile(r"[\w.-]{1,100}", re.ASCII)


class Found(NamedTuple):
    """An event, and how it stands in the file."""

    seq: int
    event: dict[str, Any]
    line: bytes


class EventTail:
    """Reads the events after number `seq`, each once, however the file is cut, torn or written anew."""

    def __init__(self, path: Path, seq: int = -1):
        self.path, self.seq = path, seq
        self.damaged: set[int] = set()
        """Where lines begin that are no events although events follow; they are skipped."""
        self._offset: int | None = None
        self._last = b"", 0
        """The newest event's line, and where it begins: it stands there still unless the file was changed."""

    def read(self) -> list[Found]:
        """Some of the new events, at most those of a chunk; none when there are none yet."""
        while True:
            found, has_more = self.read_chunk()
            if found or not has_more:
                return found

    def read_chunk(self) -> tuple[list[Found], bool]:
        """The new events of the next chunk, and whether there is more to read now.

        Raises:
            OSError: it is there, and cannot be read.
        """
        try:
            file = open_plain(self.path)
        except FileNotFoundError:
            return [], False
        with file:
            size = file.seek(0, os.SEEK_END)
            if self._offset is None or size < self._offset:
                # The first look, or the engine cut off lines that a crash had spoilt.
                self._offset = self._beginning(file, size)
            if self._offset >= size:
                return [], False
            before = self._offset
            found = self._chunk(file, before)
            return found, self._offset is None or (self._offset > before and self._offset < size)

    def _chunk(self, file: BinaryIO, offset: int) -> list[Found]:
        """The new events of the next chunk; goes on behind what may not be written anew."""
        file.seek(offset)
        data = file.read(_CHUNK_BYTES)
        if b"\n" not in data and len(data) == _CHUNK_BYTES:
            self.damaged.add(offset)
            self._offset = offset + len(data) + _skipped(file)
            return []
        found, end, good, damaged = [], 0, 0, set[int]()
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            begin, end = end, end + len(line)
            event = _parsed(line)
            if event is None:
                damaged.add(offset + begin)
                continue
            if event["seq"] > self.seq:
                if event["seq"] != self.seq + 1 and not found and not self._is_in_place(file):
                    # Lines were written anew: look again for where to go on.
                    self._offset = None
                    return []
                self.seq, self._last = event["seq"], (line, offset + begin)
                found.append(Found(self.seq, event, line.rstrip()))
            good = end
            if damaged and len(self.damaged) < _MOST_DAMAGED:
                self.damaged |= damaged
            damaged.clear()
        # Spoilt lines at the end are cut off by the next engine; a whole chunk of them is nobody's.
        self._offset = offset + (good or (end if len(data) >= _CHUNK_BYTES else 0))
        return found

    def _is_in_place(self, file: BinaryIO) -> bool:
        """Whether the event that was read last stands where it stood: if so, the file lacks numbers."""
        line, begin = self._last
        file.seek(begin)
        return file.read(len(line)) == line

    def _beginning(self, file: BinaryIO, size: int) -> int:
        """Where the events up to `seq` end, or before: as numbers only grow, by halving the file."""
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


def _skipped(file: BinaryIO) -> int:
    """How many bytes of an overlong line follow: it is no event, and is not held in memory."""
    num = 0
    while part := file.readline(_CHUNK_BYTES):
        num += len(part)
        if part.endswith(b"\n"):
            break
    return num


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The event of a line; None of one that is damaged, or of somebody else's making."""
    try:
        event = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not is_number(event.get("seq"), whole=True):
        return None
    # The kind stands in a line of its own: one of somebody else's may not make several of it.
    kind = event.get("kind")
    return event if isinstance(kind, str) and _KIND.fullmatch(kind) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def is_number(value: Any, *, whole: bool = False) -> TypeGuard[int | float]:
    """Whether `value` is a number that everybody who reads JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return -(2**53) < value < 2**53 if isinstance(value, int) else math.isfinite(value)


async def frames(tail: EventTail, is_closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The events as server-sent ones, numbered for `Last-Event-ID`, without end.

    Each chunk is read in a thread; between two of them, the loop hears whether the client is still there.
    """
    yield b"retry: 1000\n\n"
    spoken = time.monotonic()
    while not is_closing():
        data, has_more = await off_loop("following", _next_frames, tail)
        if not data and time.monotonic() - spoken > _PING_EVERY_S:
            data = b": still here\n\n"
        if data:
            yield data
            spoken = time.monotonic()
        if not has_more:
            await asyncio.sleep(_LOOK_EVERY_S)


def _next_frames(tail: EventTail) -> tuple[bytes, bool]:
    """The next chunk's events as they are sent, and whether there is more to read now."""
    try:
        found, has_more = tail.read_chunk()
    except OSError:  # what is in its place now is not a file that can be read; the run says so
        return b"", False
    return b"".join(map(_frame, found)), has_more


def _frame(found: Found) -> bytes:
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (found.seq, found.event["kind"].encode(), found.line)


class LogPart(BaseModel):
    """A part of a log."""

    text: str = Field(examples=["step 100 ...\n"])
    offset: int = Field(description="Where the text begins, in bytes.")
    next_offset: int = Field(description="Ask for this next.")
    size: int = Field(description="How long the log is now.")


def read_log(path: Path, offset: int, limit: int) -> LogPart:
    """Up to `limit` bytes from `offset` on, from the end where it is negative; whole characters only."""
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
    """Bytes at the beginning that belong to a character begun before."""
    return next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def _num_cut_off(data: bytes) -> int:
    """Bytes at the end of a character that is not whole."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
    return 0
