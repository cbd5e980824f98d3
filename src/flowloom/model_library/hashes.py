"""SHA-256 sums recorded by downloads and the task `hash`; each is valid for one size and time of the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Mark = tuple[str, int, int]
"""Path, bytes, and time of the last change in nanoseconds."""


def mark_of(path: Path) -> Mark | None:
    """Size and time that a checksum of `path` is valid for; None if the file is missing."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return str(path), stat.st_size, stat.st_mtime_ns


def recorded(path: Path, sha256: str) -> dict[str, Any]:
    """A sum as results have it."""
    stat = path.stat()
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}


def known_hashes(result_json: Path) -> dict[Mark | None, str]:
    """The sums in a run's result.json; empty without one."""
    try:
        files = json.loads(result_json.read_bytes())["files"]
        return {(str(one["path"]), one["size"], one["mtime_ns"]): str(one["sha256"]) for one in files}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
