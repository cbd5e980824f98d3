"""File locks (`flock`). The system releases a lock when the last process that holds it ends, however it ends.

A run's supervisor passes the locks of the run and its devices on to the run's processes, so that a killed
server or supervisor never lets a second run onto a device.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Any

from flowloom.files import open_plain


def try_lock(file: int | IO[Any], *, shared: bool = False, patience_s: float = 0.0) -> bool:
    """Lock an open file. Return False if another process still holds the lock after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def hold(path: Path, patience_s: float = 1.0) -> int | None:
    """A file descriptor that holds the lock at `path`, or None if another process has it.

    The patience is for `is_held`, which holds the lock for an instant.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if try_lock(descriptor, patience_s=patience_s):
        return descriptor
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """True if a process holds the lock at `path`.

    Raises:
        OSError: it is not a file, or not readable.
    """
    try:
        file = open_plain(path)
    except FileNotFoundError:
        return False
    with file:
        return not try_lock(file, shared=True)
