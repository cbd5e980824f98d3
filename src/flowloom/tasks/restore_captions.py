"""Put captions back as they were before a run of tagging or captioning."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from flowloom.errors import Problem
from flowloom.tasks.base import Task

CHANGES = "captions.jsonl"
"""In a run's directory: each caption before and after."""


class RestoreConfig(BaseModel):
    """Which run is undone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_path: str = Field(
        min_length=1,
        description="The folder or JSONL whose captions are put back: the one that the run wrote to.",
    )
    run_path: str = Field(
        min_length=1,
        description="Directory of the run that wrote captions. What was changed since then stays as it is.",
    )


def _look(config: RestoreConfig) -> list[Problem]:
    folder = Path(config.run_path)
    if (folder / "run.json").is_file() and (folder / CHANGES).is_file():
        return []
    return [Problem("run_path", f"{folder} is no run that wrote captions: it has no {CHANGES}.")]


TASK = Task(
    name="restore-captions",
    title="Undo tagging or captioning",
    config_type=RestoreConfig,
    work="flowloom.tasks.tagging.run:restore",
    needs_device=False,
    look=_look,
)
