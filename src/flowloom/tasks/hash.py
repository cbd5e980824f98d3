"""SHA-256 sums of model files, to compare with what their authors state."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flowloom.errors import Problem
from flowloom.model_library.hashes import known_hashes, mark_of, recorded
from flowloom.schema import Section
from flowloom.storage.downloads.fetch import Stopped, Watch, sha256_of
from flowloom.tasks.base import Progress, Task


class HashConfig(Section):
    """Which files to sum up."""

    paths: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    """The files."""


def _look(config: HashConfig) -> list[Problem]:
    missing = [(i, path) for i, path in enumerate(config.paths) if not Path(path).is_file()]
    return [Problem(f"paths.{i}", f"{path} is no file.") for i, path in missing]


def work(config: HashConfig, progress: Progress) -> None:
    """Work of the task `hash`; its result names every file with its sum, which the list of models shows."""
    paths = [Path(path).absolute() for path in config.paths]
    earlier = known_hashes(progress.run_dir.path / "result.json")
    total, before = sum(path.stat().st_size for path in paths), 0
    files: list[dict[str, Any]] = []
    progress.phase("hashing")
    for path in paths:

        def on_bytes(done: int, _size: int | None, before: int = before) -> None:
            progress.step(before + done, total)

        try:
            found = earlier.get(mark_of(path)) or sha256_of(path, Watch(on_bytes, progress.is_stopped))
        except Stopped:
            return
        files.append(recorded(path, found))
        progress.save_result({"files": files})
        before += path.stat().st_size


TASK = Task(
    name="hash",
    title="Sum up files",
    config_type=HashConfig,
    work="flowloom.tasks.hash:work",
    needs_device=False,
    look=_look,
)
