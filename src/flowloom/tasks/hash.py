"""SHA-256 checksums of model files, to compare with the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from flowloom.errors import Problem
from flowloom.model_library.hashes import known_hashes, mark_of, recorded
from flowloom.schema import Section
from flowloom.storage.downloads.fetch import Watch, sha256_of
from flowloom.tasks.base import FunctionTask, Progress


class HashConfig(Section):
    """Files to compute checksums of."""

    paths: Annotated[list[str], Field(min_length=1, max_length=10_000)]
    """The files."""


def _find_problems(config: HashConfig) -> list[Problem]:
    missing = [(i, path) for i, path in enumerate(config.paths) if not Path(path).is_file()]
    return [Problem(f"paths.{i}", f"{path} is not a file.") for i, path in missing]


def _hash(config: HashConfig, progress: Progress) -> None:
    """The result lists every file with its checksum, which the list of models shows."""
    paths = [Path(path).absolute() for path in config.paths]
    earlier = known_hashes(progress.run_dir.path / "result.json")
    total, before = sum(path.stat().st_size for path in paths), 0
    files: list[dict[str, Any]] = []
    progress.phase("hashing")
    for path in paths:

        def on_bytes(done: int, _size: int | None, before: int = before) -> None:
            progress.step(before + done, total)

        watch = Watch(on_bytes, progress.raise_if_stopped)
        files.append(recorded(path, earlier.get(mark_of(path)) or sha256_of(path, watch)))
        progress.save_result({"files": files})
        before += path.stat().st_size


HASH = FunctionTask(
    name="hash",
    title="Compute checksums",
    config_type=HashConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_hash,
)
