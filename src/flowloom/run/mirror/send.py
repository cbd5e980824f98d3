"""Send files and events to a mirror: only what has changed, in parts, with checksums."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import TimeoutError as NotDone
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol

from flowloom.run.mirror.layout import SEGMENT_BYTES, StoredFile, segment_name, unchecked
from flowloom.run.mirror.lease import Lease
from flowloom.storage.objects import PART_BYTES, Objects

EVENTS_EVERY_S = 5.0
"""While a large file is uploaded."""


class Digest(Protocol):
    """A checksum of the bytes so far."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""
        ...


class Sender:
    """Writes to the store of a mirror, and knows what it has written."""

    def __init__(self, store: Objects, lease: Lease, events_jsonl: Path, check: Callable[[int | None], None]):
        """
        Args:
            check: called before each piece with the step of its checkpoint, if any; raises to end the upload.
        """
        self.store, self.lease, self.events_jsonl, self.check = store, lease, events_jsonl, check
        self.mib_per_s: float | None = None
        self.sent: dict[str, StoredFile] = {}
        """Size and time on the disk of the objects in the store, with their checksum if it is needed."""

    def send_if_changed(self, path: Path, name: str, step: int | None = None) -> None:
        """Upload a file unless the store has it; `step` is that of its checkpoint."""
        present = unchecked(path)
        known = self.sent.get(name)
        if known and replace(known, sha256="") == present:
            return
        digest = hashlib.sha256()
        if present.size <= PART_BYTES:
            content = path.read_bytes()
            digest.update(content)
            self.check(step)
            self.store.write(name, content)
        else:
            self._send_in_parts(path, name, present.size, digest, step)
        if unchecked(path) == present:
            self.sent[name] = replace(present, sha256=digest.hexdigest())

    def _send_in_parts(self, path: Path, name: str, size: int, digest: Digest, step: int | None) -> None:
        upload = self.store.start_upload(name, self._pieces(path, digest, step), size)
        try:
            while True:
                try:
                    return upload.result(timeout=EVENTS_EVERY_S)
                except NotDone:
                    self.lease.renew()
                    self.send_events()
        finally:
            upload.cancel()

    async def _pieces(self, path: Path, digest: Digest, step: int | None) -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            # Not on the event loop, which reads the images of the run too.
            while piece := await asyncio.to_thread(_read, file, digest):
                self.check(step)
                yield piece
                if self.mib_per_s:
                    await asyncio.sleep(len(piece) / 2**20 / self.mib_per_s)

    def send_events(self) -> None:
        """Upload new complete lines of the events."""
        path = self.events_jsonl
        if not path.exists():
            return
        with path.open("rb") as file:
            end = _end_of_lines(file)
            for number in range(-(-end // SEGMENT_BYTES)):
                name, start = segment_name(number), number * SEGMENT_BYTES
                size = min(SEGMENT_BYTES, end - start)
                known = self.sent.get(name)
                if known is None or known.size != size:
                    file.seek(start)
                    self.store.write(name, file.read(size))
                    self.sent[name] = StoredFile(size, "", 0)


def _end_of_lines(file: BinaryIO) -> int:
    """The end of the last complete line; a partial one after it is removed if the process is killed."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**16)
        file.seek(start)
        if (found := file.read(end - start).rfind(b"\n")) >= 0:
            return start + found + 1
        end = start
    return 0


def _read(file: BinaryIO, digest: Digest) -> bytes:
    piece = file.read(PART_BYTES)
    digest.update(piece)
    return piece
