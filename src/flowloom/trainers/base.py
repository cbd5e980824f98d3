"""What every trainer is to the studio: it prepares a run directory, and says what to start there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from flowloom.errors import Problem
from flowloom.run.directory import RunDir

SourceKind = Literal["documentation", "code", "paper", "calculation", "measurement", "judgement"]


@dataclass(frozen=True)
class Command:
    """A process to start, in a group of its own."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    """Beside the studio's own environment."""
    cwd: Path | None = None
    checkout: Path | None = None
    """Whose code it runs, where that is not ours."""


@dataclass(frozen=True)
class Source:
    """Where some of a preset's values come from."""

    kind: SourceKind
    text: str
    """Which values, and where they stand: a page, a paper, a file. Of a judgement: that it is ours."""


@dataclass(frozen=True)
class Preset:
    """A configuration to begin with."""

    name: str
    title: str
    note: str
    config: dict[str, Any]
    """What differs from the defaults, by section."""
    sources: tuple[Source, ...]
    """Of all that it sets, and of the card that its title names."""


def whole_number(config: Any, section: str, key: str) -> int | None:
    """The whole number at `section.key` of a configuration; None where there is none."""
    part = config.get(section) if isinstance(config, dict) else None
    value = part.get(key) if isinstance(part, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class Trainer(Protocol):
    """One trainer; all of them are in `trainers.ALL`, by name. Imports no torch."""

    name: str
    """In the API's paths: /api/NAME/..."""
    title: str
    abilities: frozenset[str]
    """Of stop, checkpoint, sample: which files in control/ its runs obey."""
    needs_device: bool
    """Whether its runs wait for a device of their own."""
    uses_all_devices: bool
    """Whether a run of it uses every device that it is given; others use one, and may be given no more."""
    writes_events: bool
    """Whether its process writes events.jsonl itself. For others their supervisor does
    (server/runs/log_events.py)."""
    bar_is_epoch: bool
    """Whether each progress bar that `parse` reads is an epoch."""
    examiner: tuple[str, ...]
    """Words after `python -m` of the program that tells, in JSON, what a run of it will take before it
    starts; the configuration's path follows, and --runs-dir, --gpu-gib, --samples-per-s. Empty: none can."""
    fixed: tuple[str, ...]
    """Where the keys begin that a run keeps when it is resumed with changes: its checkpoints depend on them.
    An empty text stands for all keys."""

    def schema(self) -> dict[str, Any]:
        """JSON schema of its configuration."""
        ...

    def defaults(self) -> dict[str, Any]:
        """The configuration when nothing is given."""
        ...

    def presets(self) -> list[Preset]:
        """Configurations to begin with."""
        ...

    def check(self, config: dict[str, Any]) -> list[Problem]:
        """All that is wrong with `config`, missing files included; empty when it can run."""
        ...

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        """Write run.json and every file that the process reads; secrets never."""
        ...

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:
        """What to start in a prepared `run_dir` on `devices`, from its beginning or from where it was."""
        ...

    def parse(self, line: str) -> dict[str, Any] | None:
        """The event that a line of the process's output means, where it writes no events itself.

        `kind` and what the line tells of that kind's fields (run/events.py); the keeper adds the others.
        A `progress` may say `batch`, `batches` and `batches_per_s` in place of the rest: counts that begin
        again at 0, which the keeper adds up.
        """
        ...

    def total_steps(self, config: Any) -> int | None:
        """Updates that a run with `config` makes in all; None where the configuration does not state them.

        `config` is what stands in a run's directory, whatever that may be.
        """
        ...

    def samples_per_batch(self, config: dict[str, Any]) -> int | None:
        """Samples of one of the batches that `parse` counts; None where it is not known."""
        ...

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:
        """Files below `roots` that fit each path of the configuration, such as model.chroma_path."""
        ...
