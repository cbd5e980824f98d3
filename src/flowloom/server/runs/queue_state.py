"""Queue state: paused or active, and whether a failed run pauses it. Persisted in `queue_state.json`.

It also lists the started runs, so that a failure while no studio is running is noticed by the next one.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flowloom.errors import is_disk_full
from flowloom.files import read_plain, write_json
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.runs.view import ACTIVE, RunView

OnFail = Literal["continue", "pause"]
_OLD_NAME = "standing.json"
BROKEN = frozenset({"failed", "interrupted"})


class Pause(BaseModel):
    """No run is started. Running ones continue."""

    since: float = Field(description="Seconds since 1970.")
    run: str | None = Field(
        default=None, description="The failed run; null: paused by hand.", examples=["fox-lora"]
    )

    @property
    def note(self) -> str:
        """The reason, as shown at queued runs."""
        why = f" because {self.run} failed" if self.run else ""
        return f"The queue is paused{why}. Resume it on the Runs page or with PATCH /api/queue."


class _Saved(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    # Before 0.1.0 "continue" was written as "go-on".
    on_fail: Annotated[OnFail, BeforeValidator(lambda value: "continue" if value == "go-on" else value)] = (
        "continue"
    )
    pause: Pause | None = None
    started: tuple[str, ...] = ()
    """Started runs that are not yet known to be over."""


class QueueState:
    """State of a queue. Change it only while holding the queue's mutex."""

    def __init__(self, path: Path, registry: RunRegistry):
        self._path, self._runs = path, registry
        try:
            old = path.with_name(_OLD_NAME)
            self._saved = _Saved.model_validate_json(read_plain(path if path.exists() else old))
        except (OSError, ValidationError):
            self._saved = _Saved()
        self._written = self._saved
        self._publish()

    @property
    def on_fail(self) -> OnFail:
        """The reaction to a run that fails or is killed."""
        return self._saved.on_fail

    @property
    def pause(self) -> Pause | None:
        """Since when the queue is paused, and why."""
        return self._saved.pause

    def set(self, on_fail: OnFail | None, is_paused: bool | None) -> None:
        """Change what is given. An existing pause keeps its reason."""
        pause = self.pause
        if is_paused is not None and is_paused != (pause is not None):
            pause = Pause(since=time.time()) if is_paused else None
        try:
            self._save(on_fail=on_fail or self.on_fail, pause=pause)
        except OSError as error:
            if not is_disk_full(error):  # it takes effect now and is written by a later update
                raise

    def add_started(self, run_id: str) -> None:
        """Record that a run is about to be started."""
        self._save(started=tuple(dict.fromkeys((*self._saved.started, run_id))))

    def forget(self, run_id: str) -> None:
        """Forget a run that left the queue: its state says nothing about this start."""
        self._save(started=tuple(name for name in self._saved.started if name != run_id))

    def update(self) -> None:
        """Pause if a started run has failed since."""
        runs = [run for name in self._saved.started if (run := self._runs.store.get(name))]
        broken = next((run for run in runs if run.state in BROKEN), None)
        # On a full disk it takes effect now and is written by a later update.
        with suppress(OSError):
            self._save(
                started=tuple(run.id for run in runs if run.state in ACTIVE),
                pause=self.pause or (self._pause_of(broken) if self.on_fail == "pause" else None),
            )

    def _pause_of(self, broken: RunView | None) -> Pause | None:
        return Pause(since=time.time(), run=broken.id) if broken else None

    def _save(self, **changes: object) -> None:
        self._saved = self._saved.model_copy(update=changes)
        self._publish()
        if self._saved != self._written:
            write_json(self._path, self._saved.model_dump(mode="json"))
            self._written = self._saved

    def _publish(self) -> None:
        self._runs.hold_reason = self.pause.note if self.pause else None
