"""A task: everything that runs in a run directory, training included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from flowloom.errors import Problem
from flowloom.run.directory import RunDir

TaskKind = Literal["training", "task"]


@dataclass(frozen=True)
class Command:
    """A process to start, in its own process group."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    """Added to the studio's own environment."""
    cwd: Path | None = None
    checkout: Path | None = None
    """The folder of the code that it runs, if that is not ours."""
    python: str = ""
    """The Python of that code; empty: the first word of `argv`."""


class Task(Protocol):
    """A form (schema, defaults, check), the files of a run, and the process that works on them.

    Importing a task imports nothing heavy: the server reads the forms.
    """

    name: str
    """In the API's paths and, as `trainer`, in run.json."""
    title: str
    kind: TaskKind
    supported_controls: frozenset[str]
    """The requests that its runs accept (control/): stop, checkpoint, sample."""
    needs_device: bool
    """True if its runs wait for a free device."""
    uses_all_devices: bool
    """True if a run uses every device that it is given; otherwise it may be given one only."""
    writes_events: bool
    """True if its process writes events.jsonl; otherwise the supervisor reads events from its log
    (server/runs/log_events.py)."""

    def schema(self) -> dict[str, Any]:
        """JSON schema of its configuration."""
        ...

    def defaults(self) -> dict[str, Any]:
        """The configuration when nothing is set."""
        ...

    def check(self, config: dict[str, Any]) -> list[Problem]:
        """Every problem of `config`, missing files included; empty if it can run."""
        ...

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        """Write run.json and every file that the process reads, without secrets."""
        ...

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:
        """The process to start in a prepared `run_dir` on `devices`."""
        ...

    def parse(self, line: str) -> dict[str, Any] | None:  # noqa: ARG002 -- the default
        """The event that a line of the log describes, if the process writes no events.

        `kind` and the fields of that kind (run/events.py) that the line contains; the supervisor adds the
        others. A `progress` may give `batch`, `batches` and `batches_per_s` instead of the rest: counters
        that restart at 0, which the supervisor adds up.
        """
        return None
