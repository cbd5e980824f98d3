"""Events from the log of sd-scripts: lines of our hooks in its process (hooks.py) and its progress bar."""

from __future__ import annotations

import json
import re
from typing import Any

from flowloom.trainers.kohya.hooks import MARK

_BAR = re.compile(r"steps:.*?\b(\d+)/(\d+) \[[\d:]+<[\d:?]+, +([\d.]+|\?) ?(s/it|it/s)")
_HUB = re.compile(r"failed to (?:upload to|create) HuggingFace[^:]*: (.+)")


def parse(line: str) -> dict[str, Any] | None:
    """The event that a line describes."""
    begin = line.find(MARK)
    if begin >= 0:
        try:
            return json.loads(line[begin + len(MARK) :])
        except ValueError:
            return None
    if found := _BAR.search(line):
        batch, batches, speed, unit = found.groups()
        number = float(speed) if speed != "?" else None
        rate = 1 / number if number and unit == "s/it" else number
        # It counts this process's updates and restarts at 0, like the epochs of other trainers.
        return {"kind": "progress", "batch": int(batch), "batches": int(batches), "batches_per_s": rate}
    if found := _HUB.search(line):
        return {"kind": "warning", "message": f"Not uploaded to the hub: {found[1]}"}
    if "caching latents" in line or "caching text encoder" in line:
        return {"kind": "phase", "name": "caching"}
    return None
