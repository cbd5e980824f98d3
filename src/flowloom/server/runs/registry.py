"""The runs folder, and the list of what is in it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, count
from pathlib import Path

from flowloom.errors import RunError
from flowloom.run.directory import RUN_NAME, RunDir
from flowloom.server.background import isolate_errors, reason_of
from flowloom.server.locks import is_held
from flowloom.server.problems import NameTaken, NoSuchRun, NotNow
from flowloom.server.runs.process_files import lock_path
from flowloom.server.runs.processes import living_process
from flowloom.server.runs.store import RunStore
from flowloom.server.runs.view import RunView, view_of

_LOOKED_AT = ("run.json", "studio", "events.jsonl", "checkpoints", "pid.json")
_log = logging.getLogger("flowloom")


class RunRegistry:
    """Runs by name; what the store says of them is never older than the last `refresh`."""

    def __init__(self, runs_dir: Path, store: RunStore):
        self.runs_dir, self.store = runs_dir, store
        self.notes: dict[str, str] = {}
        """Why a run that waits was not started, by name."""
        self.hold_reason: str | None = None
        """Why none that waits is started."""
        self._lock = threading.RLock()
        store.refill = self.refresh_all

    def path(self, run_id: str) -> Path:
        """Where a run lies.

        Raises:
            NoSuchRun: there is none, or its name leads elsewhere.
        """
        path = self.runs_dir / run_id
        if not RUN_NAME.fullmatch(run_id) or not _is_run(path) or _is_there(_marker(path)):
            raise NoSuchRun(run_id)
        return path

    def get(self, run_id: str) -> RunView:
        """How a run stands.

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
        """The run, which runs.

        Raises:
            NotNow: it does not.
        """
        view = self.refresh(run_id)
        if view.state not in ("running", "stopping"):
            raise NotNow(
                f"{run_id!r} does not run: it is {view.state}.", "Only a run that runs can be told that."
            )
        return RunDir(self.path(run_id))

    @contextmanager
    def creating(self, name: str | None, stem: str) -> Iterator[RunDir]:
        """A new run directory called `name`, or without one `stem` and a number where that is taken; should
        creating it fail, or the studio die, nothing stays of it.

        Raises:
            NameTaken: there is such a run.
        """
        run_dir = self._begun(name, stem)
        try:
            yield run_dir
            _marker(run_dir.path).unlink()
        except BaseException:
            shutil.rmtree(run_dir.path, ignore_errors=True)
            raise

    def _begun(self, name: str | None, stem: str) -> RunDir:
        """A run directory that is marked as being made; of two who want the same name, one gets it."""
        with self._lock:
            name = name or self._free_name(stem)
            path = self.runs_dir / name
            _remove_hollow(path)
            try:
                run_dir = RunDir.create(name, self.runs_dir)
            except RunError:
                raise NameTaken(
                    f"{name!r} is there already.", "Choose another name, or resume that run."
                ) from None
            _marker(path).parent.mkdir()
            _marker(path).touch()
            return run_dir

    def _free_name(self, stem: str) -> str:
        numbered = (f"{stem}-{number}" for number in count(2))
        return next(name for name in chain([stem], numbered) if not (self.runs_dir / name).exists())

    def clean_up(self) -> None:
        """Remove what was being made or removed when a studio died here."""
        for marker in self.runs_dir.glob("*/studio/preparing"):
            shutil.rmtree(marker.parents[1], ignore_errors=True)
        for leftover in self.runs_dir.glob(".*.removed"):
            shutil.rmtree(leftover, ignore_errors=True)

    def remove(self, run_id: str) -> None:
        """As `Queue.delete`, which sees to it that nothing begins meanwhile."""
        path = self.path(run_id)
        state = self.refresh(run_id).state
        if state in ("queued", "running", "stopping"):
            raise NotNow(f"{run_id!r} waits or runs.", "Cancel or stop it first.")
        if state == "damaged" and (pid := living_process(path)):
            raise NotNow(f"{run_id!r} is still run by process {pid}.", "End that process first.")
        gone = path.with_name(f".{run_id}.{secrets.token_hex(4)}.removed")
        path.rename(gone)
        self.store.forget(run_id)
        shutil.rmtree(gone, ignore_errors=True)

    def refresh(self, run_id: str) -> RunView:
        """Look at a run's directory now.

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
        """Look at those that wait or run."""
        return [
            found
            for run in self.store.with_states("queued", "running", "stopping")
            if (found := self.refresh_if_present(run.id))
        ]

    def refresh_all(self) -> None:
        """Look at whatever changed in the folder: runs that came, went, or were started by hand."""
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
        """As `refresh`, of a run that may be gone by now."""
        try:
            return self.refresh(run_id)
        except NoSuchRun:
            self.store.forget(run_id)
            return None


def _is_run(path: Path) -> bool:
    """Whether a folder is a run, whole or damaged; one that may not be looked into counts as one."""
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


def _remove_hollow(path: Path) -> None:
    """Remove the empty folders of a run whose creating ended before it held any file."""
    for folder in (*(path / name for name in ("control", "samples", "checkpoints", "studio")), path):
        with suppress(OSError):
            folder.rmdir()


def _signature(path: Path) -> str:
    """Changes whenever how the run stands may have changed."""
    marks = []
    for part in (*(path / name for name in _LOOKED_AT), lock_path(path)):
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
