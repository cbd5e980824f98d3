"""Disk space that is reserved for uploads when they begin."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from flowloom.server.problems import ServiceError

SPARE_BYTES = 2**29
"""Left free on the disk."""


class NoRoom(ServiceError):
    status, code, title = 507, "no-room", "There is not enough disk space for this upload."


@dataclass
class Reserved:
    """The space reserved for unfinished uploads, by the folder of each."""

    _waiting: dict[Path, int] = field(default_factory=dict)
    """Length of the complete file."""
    _searched: set[Path] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held from the check of the free space until the upload is in the list."""

    def require(self, top: Path, length: int, uploads_folder: str) -> None:
        """Check that `length` more bytes fit below `top`, in addition to the space reserved on its disk.

        Raises:
            NoRoom: they do not.
        """
        self._find(top.parent, uploads_folder)
        free = shutil.disk_usage(top).free - SPARE_BYTES
        promised = self._promised(top.stat().st_dev)
        if length > free - promised:
            raise NoRoom(
                f"The file has {length:,} bytes. The disk has {max(0, free):,} bytes for uploads, of which "
                f"unfinished uploads need {promised:,}.",
                "Free some disk space, wait until other uploads end, or end them.",
            )

    def add(self, folder: Path, length: int) -> None:
        """Reserve `length` bytes for the upload in `folder`."""
        self._waiting[folder] = length

    def _promised(self, device: int) -> int:
        """Reserved bytes on a disk that have not been received yet."""
        total = 0
        for folder, length in list(self._waiting.items()):
            try:
                status = (folder / "data").stat()
            except OSError:  # it has ended
                del self._waiting[folder]
                continue
            total += max(0, length - status.st_size) if status.st_dev == device else 0
        return total

    def _find(self, home: Path, uploads_folder: str) -> None:
        """Add uploads that began before the studio was started."""
        if home in self._searched:
            return
        self._searched.add(home)
        for about in home.glob(f"*/{uploads_folder}/*/about.json"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                self._waiting.setdefault(about.parent, int(json.loads(about.read_bytes())["length"]))
