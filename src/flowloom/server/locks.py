"""Locks that the system itself keeps: each goes with the last process that holds it, however that ends.

A run's keeper takes the run's lock and its devices' locks and hands them down to the run's processes, so
that neither a killed server nor a killed keeper lets a second run onto a device.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from flowloom.files import open_plain


def hold(path: Path, patience_s: float = 1.0) -> int | None:
    """A file descriptor that holds the lock at `path`; None when another process has it.

    An onlooker (`is_held`) has it for an instant, hence the patience.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.02)
        else:
            return descriptor


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at `path`.

    Raises:
        OSError: that cannot be told: it is not a file, or not ours to read.
    """
    try:
        file = open_plain(path)
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
