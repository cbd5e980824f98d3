"""Whether the queue goes on, and what a run that fails does to it: `standing.json`, kept over restarts.

It names those that were started as well: one that fails while no studio runs is seen by the next one.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowloom.errors import is_disk_full
from flowloom.files import read_plain, write_json
from flowloom.server.runs.registry import Shelf
from flowloom.server.runs.view import ACTIVE, RunView

OnFail = Literal["go-on", "pause"]
BROKEN = frozenset({"failed", "interrupted"})


class Pause(BaseModel):
    """Nothing is started; what runs goes on."""

    since: float = Field(description="Seconds since 1970.")
    run: str | None = Field(
        default=None, description="The run that failed; null: somebody paused it.", examples=["fox-lora"]
    )

    @property
    def note(self) -> str:
        """Why a run still waits."""
        why = f" since {self.run} failed" if self.run else ""
        return f"The queue is paused{why}: let it go on at the runs, or by PATCH /api/queue."


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    on_fail: OnFail = "go-on"
    pause: Pause | None = None
    started: tuple[str, ...] = ()
    """Runs that were started, and not yet seen to have ended."""


class Standing:
    """How a queue stands. Whoever changes it holds the queue's mutex."""

    def __init__(self, path: Path, shelf: Shelf):
        self._path, self._shelf = path, shelf
        try:
            self._kept = _Kept.model_validate_json(read_plain(path))
        except (OSError, ValidationError):
            self._kept = _Kept()
        self._written = self._kept
        self._tell()

    @property
    def on_fail(self) -> OnFail:
        """What a run that fails, or whose process is killed, does to those behind it."""
        return self._kept.on_fail

    @property
    def pause(self) -> Pause | None:
        """Since when nothing is started, and why."""
        return self._kept.pause

    def set(self, on_fail: OnFail | None, is_paused: bool | None) -> None:
        """Change what is given; a pause that is there keeps its reason."""
        pause = self.pause
        if is_paused is not None and is_paused != (pause is not None):
            pause = Pause(since=time.time()) if is_paused else None
        try:
            self._keep(on_fail=on_fail or self.on_fail, pause=pause)
        except OSError as error:
            if not is_disk_full(error):  # it holds all the same, and is written at a later look
                raise

    def begins(self, run_id: str) -> None:
        """A run is about to be started."""
        self._keep(started=tuple(dict.fromkeys((*self._kept.started, run_id))))

    def forget(self, run_id: str) -> None:
        """It was taken out of the queue: how it stands says nothing about this start."""
        self._keep(started=tuple(name for name in self._kept.started if name != run_id))

    def look(self) -> None:
        """Pause where one that was started has failed since."""
        runs = [run for name in self._kept.started if (run := self._shelf.store.get(name))]
        broken = next((run for run in runs if run.state in BROKEN), None)
        # On a full disk it holds all the same, and is written at a later look.
        with suppress(OSError):
            self._keep(
                started=tuple(run.id for run in runs if run.state in ACTIVE),
                pause=self.pause or (self._pause_of(broken) if self.on_fail == "pause" else None),
            )

    def _pause_of(self, broken: RunView | None) -> Pause | None:
        return Pause(since=time.time(), run=broken.id) if broken else None

    def _keep(self, **changes: object) -> None:
        self._kept = self._kept.model_copy(update=changes)
        self._tell()
        if self._kept != self._written:
            write_json(self._path, self._kept.model_dump(mode="json"))
            self._written = self._kept

    def _tell(self) -> None:
        self._shelf.why_held = self.pause.note if self.pause else None
