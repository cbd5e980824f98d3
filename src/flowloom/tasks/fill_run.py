"""Filling a cache as a run of the studio (tasks/cache.py)."""

from __future__ import annotations

from dataclasses import asdict

from flowloom.config.run import RunConfig
from flowloom.engine.fill_cache import fill
from flowloom.tasks.base import Progress


class _Stopped(Exception):
    """Leaves the shards that are open as a kill would: what is in them counts."""


def fill_in_a_run(config: RunConfig, progress: Progress) -> None:
    """Work of the task `cache`; its result counts what was encoded, and names what was skipped."""
    phase = ""

    def on_progress(what: str, done: int, total: int) -> None:
        nonlocal phase
        if what != phase:
            phase = what
            progress.phase(what)
        progress.step(done, total)
        if progress.is_stopped():
            raise _Stopped

    try:
        filled = fill(config, on_progress)
    except _Stopped:
        return
    if filled.full:
        progress.warn(f"{filled.full}: the rest is encoded while it is trained.")
    progress.save_result(asdict(filled))
