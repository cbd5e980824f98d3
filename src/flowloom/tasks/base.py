"""A task: a typed configuration, and a function that works it off in a run directory.

To the studio it is like a trainer, so that queue, stop, resume, events and log are those of all runs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from flowloom.config.validation import problems_of
from flowloom.errors import Problem
from flowloom.run.directory import RunDir, write_json
from flowloom.run.events import EventWriter
from flowloom.trainers.base import Command, Preset

SECONDS_BETWEEN_REPORTS = 0.5

Config = TypeVar("Config", bound=BaseModel)


def _nothing(_config: Any) -> list[Problem]:
    return []


@dataclass
class Task(Generic[Config]):
    """One task; all of them are in `tasks.ALL`, by name. Importing it imports nothing heavy."""

    name: str
    title: str
    config_type: type[Config]
    """Its JSON schema is the form."""
    work: str
    """`module:function`, imported in the run's own process alone and called with the configuration and a
    `Progress`. Called again on the same directory, it goes on where it was."""
    needs_device: bool = True
    """Whether it waits for a device of its own."""
    uses_all_devices: bool = False
    look: Callable[[Config], list[Problem]] = _nothing
    """What is wrong with a well-formed configuration: files that are not there ..."""
    abilities: frozenset[str] = frozenset({"stop"})
    writes_events: bool = True
    bar_is_epoch: bool = False
    examiner: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ("",)

    def schema(self) -> dict[str, Any]:
        """See Trainer."""
        return self.config_type.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        """See Trainer; what must be given is not there."""
        fields = self.config_type.model_fields.items()
        given = {
            name: field.get_default(call_default_factory=True)
            for name, field in fields
            if not field.is_required()
        }
        return self.config_type.model_construct(**given).model_dump(
            mode="json", include=set(given), warnings=False
        )

    def presets(self) -> list[Preset]:
        """See Trainer."""
        return []

    def check(self, config: dict[str, Any]) -> list[Problem]:
        """See Trainer."""
        try:
            return self.look(self.config_type.model_validate(config))
        except ValidationError as error:
            return list(chain.from_iterable(problems_of(error, config).values()))

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        """See Trainer."""
        run_dir.write_run(self.config_type.model_validate(config), source, trainer=self.name)

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        """See Trainer; whether it resumes, the work sees itself."""
        return Command([sys.executable, "-m", "flowloom.tasks", str(run_dir.path)])

    def parse(self, line: str) -> None:
        """See Trainer: the process writes its events."""

    def total_steps(self, config: Any) -> None:
        """See Trainer: the process tells it."""

    def samples_per_batch(self, config: dict[str, Any]) -> None:
        """See Trainer: the process tells its own rate."""

    def models(self, roots: Sequence[Path]) -> dict[str, list[Path]]:  # noqa: ARG002
        """See Trainer: none of a task's paths has a list of its own."""
        return {}


class Progress:
    """How the work of a task speaks, and hears that it shall stop."""

    def __init__(self, run_dir: RunDir, writer: EventWriter):
        self.run_dir = run_dir
        self.stop_is_wished = False
        self._writer = writer
        self._done = 0
        self._began: tuple[float, int] | None = None
        self._said_at = 0.0

    def phase(self, name: str) -> None:
        """What is done now: loading, tagging ..."""
        self.say("phase", name=name)

    def step(self, done: int, total: int | None = None) -> None:
        """So much is done, of `total`: items or bytes; said twice a second at most, and at the end."""
        self._done = done
        now = time.monotonic()
        began, before = self._began = self._began or (now, done)
        if done != total and now - self._said_at < SECONDS_BETWEEN_REPORTS:
            return
        self._said_at = now
        rate = (done - before) / (now - began) if now > began and done > before else None
        eta = (total - done) / rate if rate and total is not None else None
        self.say("progress", step=done, epoch=None, max_steps=total, samples_per_s=rate, eta_s=eta)

    def warn(self, message: str) -> None:
        """Something to know that does not end the run."""
        self.say("warning", message=message)

    def say(self, kind: str, **fields: Any) -> None:
        """Write one event (run/events.py)."""
        self._writer.write(kind, **fields)

    def end(self) -> None:
        """Say that it is over: finished, or stopped where that was asked for."""
        self.say("stopped" if self.stop_is_wished else "finished", step=self._done)

    def is_stopped(self) -> bool:
        """Whether it was asked to stop: finish what is at hand, so that a resume goes on, and return."""
        self.stop_is_wished = self.stop_is_wished or self.run_dir.take_control("stop")
        return self.stop_is_wished

    def save_result(self, content: Any) -> None:
        """Write result.json, whole or not at all: what the task found."""
        write_json(self.run_dir.path / "result.json", content)
