"""Download a mirrored run from a bucket, to be resumed here: the studio's form of `flowloom resume URL`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from flowloom.config.flags import Overrides
from flowloom.errors import Problem
from flowloom.json_types import is_object
from flowloom.run.directory import RUN_NAME
from flowloom.schema import SIMPLE, Section
from flowloom.storage.base import StorageSection
from flowloom.tasks.base import FunctionTask, Progress


class RunImportConfig(Section):
    """The run in the bucket, and its settings here."""

    url: Annotated[str, Field(pattern=r"^(s3|gs|az)://[^/@\s]+/[^\x00-\x1f]+$", max_length=2048), SIMPLE]
    """The mirrored run: its `mirror.url`, and its name."""
    storage: StorageSection = StorageSection()
    """Access to the bucket."""
    save_as: Annotated[str, Field(max_length=100), SIMPLE] = ""
    """Name of the run here. Empty: its name in the bucket."""
    changes: dict[str, Any] = {}
    """Settings to change, such as paths of this machine: {"model": {"path": "/data/model.safetensors"}}."""


def _find_problems(config: RunImportConfig) -> list[Problem]:
    if config.save_as and not RUN_NAME.fullmatch(config.save_as):
        return [Problem("save_as", f"{config.save_as!r} is not a valid name of a run.")]
    return []


def _import(config: RunImportConfig, progress: Progress) -> None:
    """The result names the new run, which is beside this one."""
    from flowloom.run.mirror.download import restore
    from flowloom.storage.downloads.fetch import Watch

    access = config.storage.model_dump(exclude_defaults=True)
    overrides = [*_flags("storage", access), *_flags("", config.changes)]
    runs_dir, name = progress.run_dir.path.parent, config.save_as or None
    watch = Watch(progress.step, progress.raise_if_stopped)
    run_dir, _ = restore(config.url, runs_dir, name, overrides, progress.phase, watch)
    newest = run_dir.latest_checkpoint()
    progress.save_result({"run": run_dir.path.name, "checkpoint": newest.name if newest else None})


def _flags(path: str, values: dict[str, Any]) -> Overrides:
    """Nested values as flags of the command line."""
    return list(_flattened(path, values))


def _flattened(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if is_object(value):
        for name, part in value.items():
            yield from _flattened(f"{path}.{name}".lstrip("."), part)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


RUN_IMPORT = FunctionTask(
    name="run-import",
    title="Import a run from a bucket",
    config_type=RunImportConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_import,
)
