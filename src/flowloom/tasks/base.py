"""Tasks with a typed configuration, and the progress that their bodies report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from flowloom.config.validation import problems_of
from flowloom.errors import Problem
from flowloom.files import write_json
from flowloom.run.directory import RunDir
from flowloom.run.events import EventWriter
from flowloom.run.task import Command, Task, TaskKind

SECONDS_BETWEEN_REPORTS = 0.5

Config = TypeVar("Config", bound=BaseModel)


class StopRequested(Exception):
    """Ends the body of a task. A resume continues from the files in its run directory."""


class Progress:
    """Events of a task, and its stop requests."""

    def __init__(self, run_dir: RunDir, writer: EventWriter | None):
        """`writer`: None for a process that shares a run with another one, which writes events and result."""
        self.run_dir = run_dir
        self.is_stop_requested = False
        self.takes_requests = True
        """False: other processes must see a stop request too, and one of them clears it at the end."""
        self._writer = writer
        self._done = 0
        self._began: tuple[float, int] | None = None
        self._reported_at = 0.0

    def phase(self, name: str) -> None:
        """Report the current phase: loading, tagging ..."""
        self.emit("phase", name=name)

    def step(self, done: int, total: int | None = None) -> None:
        """Report `done` of `total` items or bytes, at most twice a second and at the end."""
        self._done = done
        now = time.monotonic()
        began, before = self._began = self._began or (now, done)
        if done != total and now - self._reported_at < SECONDS_BETWEEN_REPORTS:
            return
        self._reported_at = now
        rate = (done - before) / (now - began) if now > began and done > before else None
        eta = (total - done) / rate if rate and total is not None else None
        self.emit("progress", step=done, epoch=None, max_steps=total, samples_per_s=rate, eta_s=eta)

    def warn(self, message: str) -> None:
        """Report something that does not end the run."""
        self.emit("warning", message=message)

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event (run/events.py)."""
        if self._writer:
            self._writer.write(kind, **fields)

    def end(self) -> None:
        """Report the end: finished, or stopped on request."""
        self.emit("stopped" if self.is_stop_requested else "finished", step=self._done)

    def is_stopped(self) -> bool:
        """True if a stop was requested: finish the current item and return."""
        is_new = (
            self.run_dir.take_control("stop")
            if self.takes_requests
            else (self.run_dir.control_dir / "stop").exists()
        )
        self.is_stop_requested = self.is_stop_requested or is_new
        return self.is_stop_requested

    def raise_if_stopped(self) -> None:
        """Raises StopRequested if a stop was requested."""
        if self.is_stopped():
            raise StopRequested

    def save_result(self, content: Any) -> None:
        """Write result.json atomically."""
        if self._writer:
            write_json(self.run_dir.path / "result.json", content)


def _no_problems(_config: Any) -> list[Problem]:
    return []


@dataclass(kw_only=True)
class FormTask(Task, Generic[Config]):
    """A task whose form is a Pydantic model; a subclass says which process it starts."""

    name: str
    title: str
    config_type: type[Config]
    kind: TaskKind = "task"
    needs_device: bool = True
    uses_all_devices: bool = False
    writes_events: bool = True
    supported_controls: frozenset[str] = frozenset({"stop"})
    find_problems: Callable[[Config], list[Problem]] = _no_problems
    """Problems of a valid configuration, such as missing files."""

    def schema(self) -> dict[str, Any]:
        return self.config_type.model_json_schema()

    def defaults(self) -> dict[str, Any]:
        """The defaults, without the required fields."""
        fields = self.config_type.model_fields.items()
        optional = {
            name: field.get_default(call_default_factory=True)
            for name, field in fields
            if not field.is_required()
        }
        return self.config_type.model_construct(**optional).model_dump(
            mode="json", include=set(optional), warnings=False
        )

    def check(self, config: dict[str, Any]) -> list[Problem]:
        try:
            return self.find_problems(self.config_type.model_validate(config))
        except ValidationError as error:
            return list(chain.from_iterable(problems_of(error, config).values()))

    def prepare(self, config: dict[str, Any], run_dir: RunDir, source: str) -> None:
        run_dir.write_run(self.config_type.model_validate(config), source, trainer=self.name)


@dataclass(kw_only=True)
class FunctionTask(FormTask[Config]):
    """A task whose body is a Python function, called in a separate process (tasks/__main__.py)."""

    body: Callable[[Config, Progress], None]
    """Called again on the same run directory, it continues. Imports heavy packages itself."""

    def command(self, run_dir: RunDir, resume: bool, devices: Sequence[str] = ()) -> Command:  # noqa: ARG002
        return Command([sys.executable, "-m", "flowloom.tasks", str(run_dir.path)])

    def run(self, config: Config, progress: Progress) -> None:
        """Run the body to its end or to a stop request."""
        with suppress(StopRequested):
            self.body(config, progress)
        progress.end()
