"""Which runs need a file or folder: it is not deleted under them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from flowloom.errors import RunError
from flowloom.run.directory import RunDir
from flowloom.server.deps import Studio
from flowloom.server.problems import InUse
from flowloom.server.runs.view import ACTIVE


def runs_that_name(studio: Studio, place: Path, states: Collection[str]) -> list[str]:
    """The runs in one of `states` whose configuration names `place`, what is in it, or a folder around it."""
    real = place.resolve()
    return sorted(
        run.id
        for run in studio.shelf.store.with_states(*sorted(states))
        if any(path.is_relative_to(real) or real.is_relative_to(path) for path in _named(studio, run.id))
    )


def require_unused(studio: Studio, place: Path) -> None:
    """Raises InUse where a run that waits or runs names `place`."""
    if names := runs_that_name(studio, place, ACTIVE):
        verb = "needs" if len(names) == 1 else "need"
        raise InUse(f"{', '.join(names)} {verb} {place.name}.", "Stop or cancel what waits or runs first.")


def _named(studio: Studio, run_id: str) -> Iterator[Path]:
    try:
        config = RunDir(studio.shelf.runs_dir / run_id).read_run()["config"]
    except RunError:  # it went away, or is damaged, and cannot start
        return
    yield from studio.roots.named_by(config)
