"""Host memory that is free for copies."""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOT_ROOM = 1.2
"""Free host memory that the copy of a checkpoint needs, over its size."""
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Host memory that can be used without swapping, files in the page cache counted as free.

    On Linux also within the limit of a container; elsewhere only pages that nothing uses.
    """
    free = _meminfo().get("MemAvailable", os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        fields = (line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cached = {name: int(value) for name, value in fields}.get("inactive_file", 0)
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used + cached)


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(value) * 1024 for name, value, *_ in fields}
