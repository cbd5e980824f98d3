"""Restore the captions that a run of tagging or captioning changed."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from flowloom.errors import Problem
from flowloom.schema import Section
from flowloom.storage.base import StorageSection
from flowloom.tasks.base import FunctionTask, Progress

CHANGES = "captions.jsonl"
"""In a run directory: each caption before and after."""


class RestoreConfig(Section):
    """The run to undo."""

    data_path: str = Field(
        min_length=1,
        description="Folder, bucket or JSONL whose captions are restored: the one that the run wrote to.",
    )
    storage: StorageSection = Field(StorageSection(), description="Access to a bucket with the captions.")
    run_path: str = Field(
        min_length=1,
        description="Directory of the run that wrote captions. Captions changed since then stay unchanged.",
    )


def _find_problems(config: RestoreConfig) -> list[Problem]:
    folder = Path(config.run_path)
    if (folder / "run.json").is_file() and (folder / CHANGES).is_file():
        return []
    return [Problem("run_path", f"{folder} is not a run that wrote captions: it has no {CHANGES}.")]


def _restore(config: RestoreConfig, progress: Progress) -> None:
    from flowloom.tasks.tagging.run import restore

    restore(config, progress)


RESTORE_CAPTIONS = FunctionTask(
    name="restore-captions",
    title="Undo tagging or captioning",
    config_type=RestoreConfig,
    needs_device=False,
    find_problems=_find_problems,
    body=_restore,
)
