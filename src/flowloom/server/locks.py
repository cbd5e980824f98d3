"""Locks that the system itself keeps: each goes with the last process that holds it, however that ends.

A run's keeper takes the run's lock and its devices' locks and hands them down to the run's processes, so
that neither a killed server nor a killed keeper lets a second run onto a device.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


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
    """Whether some process holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
