"""The registry of runs: the runs folder and its index."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, count
from pathlib import Path

from flowloom.errors import RunError
from flowloom.locks import is_held
from flowloom.run.directory import RUN_NAME, RunDir
from flowloom.server.background import isolate_errors, reason_of
from flowloom.server.problems import NameTaken, NoSuchRun, NotNow
from flowloom.server.runs.process_files import lock_path
from flowloom.server.runs.processes import living_process
from flowloom.server.runs.store import RunStore
from flowloom.server.runs.view import RunView, view_of

_WATCHED = ("run.json", "studio", "events.jsonl", "checkpoints", "pid.json", "launch/job.json")
_log = logging.getLogger("flowloom")


class RunRegistry:
    """Runs by name. The store holds each run as of its last `refresh`."""

    def __init__(self, runs_dir: Path, store: RunStore):
        self.runs_dir, self.store = runs_dir, store
        self.notes: dict[str, str] = {}
        """Why a queued run was not started, by name."""
        self.hold_reason: str | None = None
        """Why no queued run is started."""
        self._lock = threading.RLock()
        store.refill = self.refresh_all

    def path(self, run_id: str) -> Path:
        """The path of a run.

        Raises:
            NoSuchRun: there is none, or its name leaves the folder.
        """
        path = self.runs_dir / run_id
        if not RUN_NAME.fullmatch(run_id) or not _is_run(path) or _is_there(_marker(path)):
            raise NoSuchRun(run_id)
        return path

    def get(self, run_id: str) -> RunView:
        """The state of a run.

        Raises:
            NoSuchRun: there is none.
        """
        return self.store.get(run_id) or self.refresh(run_id)

    def run_dir(self, run_id: str) -> RunDir:
        """A run's directory.

        Raises:
            NoSuchRun: there is none.
        """
        return RunDir(self.path(run_id))

    def require_running(self, run_id: str) -> RunDir:
        """The directory of a running run.

        Raises:
            NotNow: it is not running.
        """
        view = self.refresh(run_id)
        if view.state not in ("running", "stopping"):
            raise NotNow(
                f"{run_id!r} is not running: it is {view.state}.", "This works only while the run is running."
            )
        return RunDir(self.path(run_id))

    @contextmanager
    def creating(self, name: str | None, stem: str) -> Generator[RunDir]:
        """Create a run directory called `name`, or `stem` with a number if that is taken (no name given).

        If creating it fails, or the studio dies meanwhile, nothing is left of it.

        Raises:
            NameTaken: a run has this name.
        """
        run_dir = self._start_creating(name, stem)
        try:
            yield run_dir
            _marker(run_dir.path).unlink()
        except BaseException:
            shutil.rmtree(run_dir.path, ignore_errors=True)
            raise

    def _start_creating(self, name: str | None, stem: str) -> RunDir:
        """Create a directory marked as incomplete. Of two concurrent requests for a name, one succeeds."""
        with self._lock:
            name = name or self._free_name(stem)
            path = self.runs_dir / name
            _remove_empty(path)
            try:
                run_dir = RunDir.create(name, self.runs_dir)
            except RunError:
                raise NameTaken(
                    f"A run is called {name!r} already.", "Choose another name, or resume that run."
                ) from None
            _marker(path).parent.mkdir()
            _marker(path).touch()
            return run_dir

    def _free_name(self, stem: str) -> str:
        numbered = (f"{stem}-{number}" for number in count(2))
        return next(name for name in chain([stem], numbered) if not (self.runs_dir / name).exists())

    def clean_up(self) -> None:
        """Remove runs that were being created or deleted when a studio died."""
        for marker in self.runs_dir.glob("*/studio/preparing"):
            shutil.rmtree(marker.parents[1], ignore_errors=True)
        for leftover in self.runs_dir.glob(".*.removed"):
            shutil.rmtree(leftover, ignore_errors=True)

    def remove(self, run_id: str) -> None:
        """Delete a run. Call `Queue.delete`, which keeps it from being started meanwhile."""
        path = self.path(run_id)
        state = self.refresh(run_id).state
        if state in ("queued", "running", "stopping"):
            raise NotNow(f"{run_id!r} is queued or running.", "Cancel or stop it first.")
        if state == "damaged" and (pid := living_process(path)):
            raise NotNow(f"Process {pid} still runs {run_id!r}.", "End that process first.")
        gone = path.with_name(f".{run_id}.{secrets.token_hex(4)}.removed")
        path.rename(gone)
        self.store.forget(run_id)
        shutil.rmtree(gone, ignore_errors=True)

    def refresh(self, run_id: str) -> RunView:
        """Read a run's directory now.

        Raises:
            NoSuchRun: there is none.
        """
        path = self.path(run_id)
        with self._lock:
            signature = _signature(path)
            view = view_of(path)
            held = self.hold_reason if view.state == "queued" else None
            view = view.model_copy(update={"note": held or self.notes.get(run_id)})
            self.store.put(view, signature)
            return view

    def refresh_active(self) -> list[RunView]:
        """Read the directories of queued and running runs."""
        return [
            view
            for run in self.store.with_states("queued", "running", "stopping")
            if (view := self.refresh_if_present(run.id))
        ]

    def refresh_all(self) -> None:
        """Read every changed directory: new and deleted runs, and those started by hand."""
        known = self.store.signatures()
        names = {entry.name for entry in os.scandir(self.runs_dir) if entry.is_dir(follow_symlinks=False)}
        for name in filter(RUN_NAME.fullmatch, names):
            path = self.runs_dir / name
            signature, state = known.get(name, ("", ""))
            if state not in ("queued", "running", "stopping") and signature != _signature(path):
                with isolate_errors(partial(_log.error, "%s: %s", name)):
                    self.refresh_if_present(name)
        for name in known.keys() - names:
            self.store.forget(name)

    def refresh_if_present(self, run_id: str) -> RunView | None:
        """Like `refresh`, but None if the run is gone."""
        try:
            return self.refresh(run_id)
        except NoSuchRun:
            self.store.forget(run_id)
            return None


def _is_run(path: Path) -> bool:
    """True if a folder is a run, damaged or not. A folder without read permission counts as one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and bool((path / "run.json").lstat())
    except PermissionError:
        return True
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _marker(path: Path) -> Path:
    return path / "studio" / "preparing"


def _remove_empty(path: Path) -> None:
    """Remove the empty folders of a run whose creation ended before it held any file."""
    for folder in (*(path / name for name in ("control", "samples", "checkpoints", "studio")), path):
        with suppress(OSError):
            folder.rmdir()


def _signature(path: Path) -> str:
    """A text that differs whenever the run's state may have changed."""
    marks: list[str] = []
    for part in (*(path / name for name in _WATCHED), lock_path(path)):
        try:
            status = part.stat()
        except OSError:
            continue
        marks.append(f"{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_size}")
    try:
        held = str(is_held(lock_path(path)) or RunDir(path).is_running())
    except OSError as error:
        held = reason_of(error)
    return " ".join([*marks, held])
