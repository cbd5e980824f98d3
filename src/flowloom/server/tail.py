"""Following files that grow: events by their numbers, the log by its bytes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

_LOOK_EVERY_S = 0.1
_PING_EVERY_S = 15.0
_CHUNK_BYTES = 262_144
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
        self._is_in_step = False
        """Whether an event was read: from then on numbers follow one another."""

    def read(self) -> list[Found]:
        """Some of the new events; none when there are none yet."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return []
        while True:
            if self._offset is None or size < self._offset:
                # The first look, a gap in the numbers, or the engine cut off lines that a crash had spoilt.
                self._begin_again(size)
            if self._offset is None or self._offset >= size:
                return []
            found, taken = self._chunk(self._offset)
            if found or (self._offset is not None and not taken):
                return found

    def _chunk(self, offset: int) -> tuple[list[Found], int]:
        """The events of the next chunk, and how far it was read: not beyond what may yet be written anew."""
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(_CHUNK_BYTES)
            if b"\n" not in data and len(data) == _CHUNK_BYTES:
                data += file.readline()
        found, end, good, damaged = [], 0, 0, set[int]()
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            end += len(line)
            event = _parsed(line)
            if event is None:
                damaged.add(offset + end - len(line))
                continue
            good = end
            self.damaged |= damaged
            if event["seq"] <= self.seq:
                continue
            if self._is_in_step and event["seq"] != self.seq + 1:
                # Lines were written anew, or somebody left some out: look again, once these are told.
                self._offset = None
                return found, 0
            self.seq, self._is_in_step = event["seq"], True
            found.append(Found(self.seq, event, line.rstrip()))
        # Spoilt lines at the end are cut off by the next engine; a whole chunk of them is nobody's.
        taken = good or (end if len(data) >= _CHUNK_BYTES else 0)
        self._offset = offset + taken
        return found, taken

    def _begin_again(self, size: int) -> None:
        """Go to where the events up to `seq` end, or before: as numbers only grow, by halving the file."""
        low, high = 0, size if self.seq >= 0 else 0
        with self.path.open("rb") as file:
            while high - low > _CHUNK_BYTES:
                middle = (low + high) // 2
                file.seek(middle)
                file.readline()
                start, event = file.tell(), _parsed(file.readline())
                if event is None or start >= high:
                    break
                low, high = (start, high) if event["seq"] <= self.seq else (low, middle)
        self._offset, self._is_in_step = low, False


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("seq"), int):
        return None
    # The kind stands in a line of its own: one of somebody else's may not make several of it.
    kind = event.get("kind")
    return event if isinstance(kind, str) and _KIND.fullmatch(kind) else None


async def frames(tail: EventTail, is_closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The events as server-sent ones, numbered for `Last-Event-ID`, without end."""
    yield b"retry: 1000\n\n"
    spoken = time.monotonic()
    while not is_closing():
        found = tail.read()
        if found:
            yield b"".join(map(_frame, found))
        elif time.monotonic() - spoken > _PING_EVERY_S:
            yield b": still here\n\n"
        else:
            await asyncio.sleep(_LOOK_EVERY_S)
            continue
        spoken = time.monotonic()


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
    if not path.exists():
        return LogPart(text="", offset=0, next_offset=0, size=0)
    with path.open("rb") as file:
        size = file.seek(0, 2)
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
