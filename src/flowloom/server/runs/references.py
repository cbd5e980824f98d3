"""Runs that refer to a file or folder, so that it is not deleted while they need it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from flowloom.errors import RunError
from flowloom.run.directory import RunDir
from flowloom.server.deps import Studio
from flowloom.server.problems import InUse
from flowloom.server.runs.view import ACTIVE


def runs_referencing(studio: Studio, path: Path, states: Collection[str]) -> list[str]:
    """Names of the runs in one of `states` whose configuration names `path`, its content or a parent."""
    real = path.resolve()
    return sorted(
        run.id
        for run in studio.runs.store.with_states(*sorted(states))
        if any(used.is_relative_to(real) or real.is_relative_to(used) for used in _referenced(studio, run.id))
    )


def require_unreferenced(studio: Studio, path: Path) -> None:
    """Raise InUse if a queued or running run refers to `path`."""
    if names := runs_referencing(studio, path, ACTIVE):
        verb = "needs" if len(names) == 1 else "need"
        raise InUse(f"{', '.join(names)} {verb} {path.name}.", "Stop or cancel these runs first.")


def _referenced(studio: Studio, run_id: str) -> Iterator[Path]:
    try:
        config = RunDir(studio.runs.runs_dir / run_id).read_run()["config"]
    except RunError:  # it was deleted, or is damaged and cannot start
        return
    yield from studio.roots.referenced_paths(config)
