"""Copy a run to its mirror in a separate thread; training never waits for it.

Each pass compares the run directory with what is in the store and writes the difference, so that an outage, a
full bucket or expired keys only delay it.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flowloom.config.run import CheckpointSection
from flowloom.errors import DamagedError, Denied, NotFound, SourceError, Unavailable
from flowloom.run.directory import RunDir, checkpoint_name, step_of
from flowloom.run.events import read_events
from flowloom.run.mirror.layout import (
    CHECKPOINTS,
    EVENTS,
    FOLDERS,
    RUN_JSON,
    SEGMENT_BYTES,
    StoredFile,
    files_in,
    is_copy_of,
    manifest_bytes,
    manifest_name,
    mirrored_steps,
    read_manifest,
    unchecked,
)
from flowloom.run.mirror.lease import Lease, LeaseLostError
from flowloom.run.mirror.send import Sender
from flowloom.storage.base import ObjectInfo
from flowloom.storage.objects import Objects

PERIOD_S = 10.0
"""Between two passes, unless something was saved."""
PAUSES_S = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
"""After a failure, before the next attempt."""
SCRATCH = "mirror"
"""Folder of the run directory with links to a checkpoint that is uploaded, as retention may delete it."""


@dataclass(frozen=True)
class Notice:
    """A result for the events of the run."""

    step: int | None = None
    """The checkpoint that is complete in the mirror now."""
    problem: str = ""
    hint: str = ""


class _OutdatedError(Exception):
    """The upload of a checkpoint is not worth continuing."""


class Mirror:
    """Uploads a run from a thread; `notify` is called from that thread."""

    def __init__(
        self,
        run_dir: RunDir,
        store: Objects,
        lease: Lease,
        keep: CheckpointSection,
        notify: Callable[[Notice], None],
        *,
        mib_per_s: float | None = None,
    ):
        self.run_dir, self.store, self.lease, self.keep, self.notify = run_dir, store, lease, keep, notify
        self.sender = Sender(store, lease, run_dir.events_jsonl, self._check)
        self.sender.mib_per_s = mib_per_s
        self.complete: set[int] = set()
        """Steps of the checkpoints that are complete in the store."""
        self._removed: set[int] = set()
        self._left_behind: set[int] = set()
        self._abandoned: set[int] = set()
        """Checkpoints in the store beyond the one that this process resumed from."""
        self._has_sent = False
        self._is_listed = False
        self._problem = ""
        self._wake, self._is_over, self._is_closed = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._is_between = threading.Event()
        """Set unless a checkpoint is uploaded."""
        self._is_between.set()
        latest = run_dir.latest_checkpoint()
        self._start = step_of(latest) if latest else 0
        shutil.rmtree(run_dir.path / SCRATCH, ignore_errors=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def saved(self, step: int) -> None:
        """The run saved a checkpoint."""
        self.complete.discard(step)
        self._removed.discard(step)
        self._wake.set()

    def removed(self, step: int) -> None:
        """The run removed a checkpoint; if it did for room on the disk, its upload ends at once."""
        self._removed.add(step)
        held = self.run_dir.path / SCRATCH / checkpoint_name(step)
        if self.keep.keep_last == "auto" and held.exists():
            shutil.rmtree(held, ignore_errors=True)
            self._is_between.wait(2.0)

    def finish(self, seconds: float) -> bool:
        """Upload the rest, for at most `seconds`; True if everything is in the store."""
        self.sender.mib_per_s = None
        self._is_over.set()
        self._wake.set()
        self._thread.join(max(0.0, seconds))
        is_complete = not self._thread.is_alive() and not self._problem
        self._is_closed.set()
        self._wake.set()
        self._thread.join(2.0)
        shutil.rmtree(self.run_dir.path / SCRATCH, ignore_errors=True)
        return is_complete

    def close(self) -> None:
        """Upload the last events and release the lease; after `finish`."""
        self.sender.send_events()
        self.lease.release()

    def _work(self) -> None:
        failures = 0
        while not self._is_closed.is_set():
            is_last = self._is_over.is_set()
            try:
                self._pass()
                failures = 0
                self._report("")
                if is_last and self._next_checkpoint() is None:
                    return
            except LeaseLostError as error:
                self._report(str(error), error.hint + " Training continues without the mirror.")
                return
            except (SourceError, OSError) as error:
                failures += 1
                if isinstance(error, Denied):
                    self.store.renew_keys()
                self._report(str(error), _hint(error))
            pause = PAUSES_S[min(failures, len(PAUSES_S)) - 1] if failures else PERIOD_S
            self._wake.wait(min(pause, 2.0) if self._is_over.is_set() else pause)
            self._wake.clear()

    def _report(self, problem: str, hint: str = "") -> None:
        """Notify of a problem once, and of its end."""
        before, self._problem = self._problem, problem
        if problem and not before:
            self.notify(Notice(problem=problem, hint=hint))
        if before and not problem:
            self.notify(Notice(problem="works again; everything is uploaded.", hint=""))

    def _pass(self) -> None:
        """Bring the store up to date.

        Raises:
            LeaseLostError: another run directory writes to it.
            SourceError, OSError: it could not be written.
        """
        self.lease.renew()
        if not self._is_listed:
            self._list()
        self.sender.send_if_changed(self.run_dir.run_json, RUN_JSON)
        self.sender.send_events()
        self._prune()
        # The newest first: it is the one that a resume needs.
        if folder := self._next_checkpoint():
            self._send_checkpoint(folder)
        self._send_folders()
        while (folder := self._next_checkpoint()) and self._send_checkpoint(folder):
            self._prune()
        self._prune()

    def _send_folders(self) -> None:
        for path in (path for root in FOLDERS for path in files_in(self.run_dir.path / root)):
            # Previews of a step may be replaced at any moment.
            with suppress(FileNotFoundError):
                self.sender.send_if_changed(path, path.relative_to(self.run_dir.path).as_posix())
            self.lease.renew()

    def _list(self) -> None:
        """Learn what the store has from earlier processes."""
        found = {info.name: info for info in self.store.list()}
        for event in read_events(self.run_dir.events_jsonl):
            if event["kind"] in ("saved", "removed"):
                (self._removed.add if event["kind"] == "removed" else self._removed.discard)(event["step"])
        for path in (path for root in FOLDERS for path in files_in(self.run_dir.path / root)):
            name = path.relative_to(self.run_dir.path).as_posix()
            if _is_older(path, found.get(name)):
                self.sender.sent[name] = unchecked(path)
        for name, info in found.items():
            if name.startswith(f"{EVENTS}/") and info.size == SEGMENT_BYTES:
                self.sender.sent[name] = StoredFile(SEGMENT_BYTES, "", 0)
        local = {step_of(folder): folder for folder in self.run_dir.checkpoints()}
        steps = mirrored_steps(list(found))
        self.complete |= {step for step in steps if step not in local or self._has_copy(local[step])}
        self._abandoned = {step for step in steps if step > self._start and step not in local}
        folders = {name.split("/")[1] for name in found if name.startswith(f"{CHECKPOINTS}/step_")}
        # Parts of checkpoints whose upload was interrupted and that are gone from the disk.
        incomplete = {int(name[5:]) for name in folders if name[5:].isdigit()} - set(steps)
        self._left_behind |= incomplete - local.keys()
        self._is_listed = True

    def _has_copy(self, folder: Path) -> bool:
        try:
            return is_copy_of(folder, read_manifest(self.store, step_of(folder)))
        except DamagedError:
            return False

    def _next_checkpoint(self) -> Path | None:
        """The newest checkpoint that is not in the store."""
        missing = [folder for folder in self.run_dir.checkpoints() if step_of(folder) not in self.complete]
        return next(reversed(missing), None)

    def _send_checkpoint(self, folder: Path) -> bool:
        """Upload a checkpoint; False if it was removed, or is not worth the time that is left."""
        step = step_of(folder)
        self._is_between.clear()
        held = self._held(folder)
        try:
            if step in self._remote_manifests():
                self.store.delete(manifest_name(step))
            files: dict[str, StoredFile] = {}
            for path in files_in(held):
                within = path.relative_to(held).as_posix()
                name = f"{CHECKPOINTS}/{checkpoint_name(step)}/{within}"
                self.sender.send_if_changed(path, name, step)
                files[within] = self.sender.sent[name]
            # A resume needs the events before the checkpoint.
            self.sender.send_events()
            self.store.write(manifest_name(step), manifest_bytes(files))
        except (_OutdatedError, FileNotFoundError):
            self._wake.set()
            return False
        finally:
            self._is_between.set()
            shutil.rmtree(self.run_dir.path / SCRATCH, ignore_errors=True)
        self.complete.add(step)
        self._has_sent = True
        self._abandoned.discard(step)
        self.notify(Notice(step=step))
        return True

    def _check(self, step: int | None) -> None:
        """Raise an error if an upload, of the checkpoint of `step` if any, must end."""
        if self._is_closed.is_set():
            raise Unavailable("the mirror was closed")
        if step is None:
            return
        is_removed = step in self._removed and self.keep.keep_last == "auto"
        # While the run ends there may be time for one checkpoint.
        newest = self._next_checkpoint() if self._is_over.is_set() else None
        if is_removed or (newest and step_of(newest) > step):
            raise _OutdatedError

    def _remote_manifests(self) -> list[int]:
        return mirrored_steps([info.name for info in self.store.list(CHECKPOINTS)])

    def _held(self, folder: Path) -> Path:
        """Links to the files of a checkpoint; the folder itself on file systems without links."""
        held = self.run_dir.path / SCRATCH / folder.name
        shutil.rmtree(held, ignore_errors=True)
        try:
            shutil.copytree(folder, held, copy_function=os.link)
        except (OSError, shutil.Error):
            shutil.rmtree(held, ignore_errors=True)
            return folder
        return held

    def _prune(self) -> None:
        """Remove from the store what retention removed, but never the newest complete checkpoint."""
        for step in sorted(self._superseded()):
            self.store.delete(manifest_name(step))
            self.complete.discard(step)
            self._left_behind.add(step)
        for step in sorted(self._left_behind):
            folder = f"{CHECKPOINTS}/{checkpoint_name(step)}"
            for info in list(self.store.list(folder)):
                self.store.delete(info.name)
                self.sender.sent.pop(info.name, None)
            self._left_behind.discard(step)

    def _superseded(self) -> set[int]:
        """Checkpoints in the store that are not needed any more; never the newest one of this attempt."""
        steps = sorted(self.complete - self._abandoned)
        gone = self._removed & self.complete
        keep_last, every = self.keep.keep_last, self.keep.keep_every
        if keep_last != "auto":
            # Those from before a resume on another machine, whose disk never had them.
            local = {step_of(folder) for folder in self.run_dir.checkpoints()}
            older = set(steps[:-keep_last]) - local
            gone |= {step for step in older if not (every and step % every == 0)}
        gone -= set(steps[-1:])
        return gone | (self._abandoned & self.complete) if self._has_sent else gone


def _is_older(path: Path, info: ObjectInfo | None) -> bool:
    """True if the store has a file of the same size that is not older than `path`."""
    if info is None or info.modified is None:
        return False
    status = path.stat()
    return info.size == status.st_size and info.modified.timestamp() >= status.st_mtime


def _hint(error: Exception) -> str:
    if isinstance(error, OSError):
        return "Training continues, and the upload is tried again."
    if isinstance(error, NotFound):
        return "Create the bucket. Training continues, and the upload is tried again."
    return (
        "Training continues, and the upload catches up. Keys of a profile are read again; those of the "
        "environment are renewed by a restart only."
    )
