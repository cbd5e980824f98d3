"""A trainer backend: a task with presets, a preflight and resumable configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel

from flowloom.json_types import is_object
from flowloom.run.task import Task, TaskKind

SourceKind = Literal["documentation", "code", "paper", "calculation", "measurement", "judgement"]


@dataclass(frozen=True)
class Source:
    """The origin of some of a preset's values."""

    kind: SourceKind
    text: str
    """Which values, and their page, paper or file. For a judgement: that it is ours."""


@dataclass(frozen=True)
class Preset:
    """A configuration to start from."""

    name: str
    title: str
    note: str
    config: dict[str, Any]
    """Values that differ from the defaults, by section."""
    sources: tuple[Source, ...]
    """For every value that it sets, and for the GPU that its title names."""


def whole_number(config: Any, section: str, key: str) -> int | None:
    """The integer at `section.key` of a configuration; None if there is none."""
    part = config.get(section) if is_object(config) else None
    value = part.get(key) if is_object(part) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@runtime_checkable
class TrainerBackend(Task, Protocol):
    """A task that trains; `trainers.ALL` lists them by name. Their routes are /api/NAME/..."""

    kind: TaskKind = "training"
    bar_is_epoch: bool
    """True if each progress bar that `parse` reads is an epoch."""
    preflight_command: tuple[str, ...]
    """Words after `python -m` of the program that prints a preflight as JSON; the configuration's path
    follows, and --runs-dir, --gpu-gib, --samples-per-s. Empty: no preflight."""
    preflight_has_table: bool = False
    """True if the preflight has an option --table."""
    immutable_keys: tuple[str, ...]
    """Prefixes of the keys that cannot change on resume, because the checkpoints depend on them."""

    def presets(self) -> list[Preset]:
        """Configurations to start from."""
        ...

    def resolve(self, config: dict[str, Any]) -> BaseModel:
        """The validated configuration as run.json stores it: with defaults and absolute paths."""
        ...

    def total_steps(self, config: Any) -> int | None:  # noqa: ARG002 -- the default
        """Number of steps of a run with `config`; None if the configuration does not say.

        `config` comes from a run directory and may be anything.
        """
        return None

    def samples_per_batch(self, config: dict[str, Any]) -> int | None:  # noqa: ARG002 -- the default
        """Samples in one of the batches that `parse` counts; None if unknown."""
        return None

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        """Files below `roots` that fit each path of the configuration, such as model.chroma_path."""
        ...
