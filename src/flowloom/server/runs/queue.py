"""The queue: which run starts next and on which devices, and the control of running ones.

All its state is in the run directories (process_files.py) and in file locks. A new `Queue` object finds
the same queue and the same runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from flowloom.errors import Problem, RunError, is_disk_full
from flowloom.launchers.base import LaunchSettings
from flowloom.launchers.places import place_of
from flowloom.locks import hold, is_held
from flowloom.run.directory import Control, RunDir
from flowloom.run.task import Task
from flowloom.server.background import isolate_errors
from flowloom.server.problems import Invalid, NotNow
from flowloom.server.runs.clusters import follow_command, require_launch, require_reach, settings_of
from flowloom.server.runs.process_files import (
    BUSY,
    NOT_QUEUED,
    RAN,
    ProcessRecord,
    QueueEntry,
    StopRequest,
    lock_path,
)
from flowloom.server.runs.processes import environment_of, request_stop
from flowloom.server.runs.queue_state import OnFail, QueueState
from flowloom.server.runs.registry import RunRegistry
from flowloom.server.runs.supervisor import LaunchSpec
from flowloom.server.runs.view import RunView

RETRY_AFTER_S = 30.0


class Queue:
    """Starts queued runs as soon as their devices are free. `tick` does everything that is due."""

    def __init__(
        self, registry: RunRegistry, tasks: Mapping[str, Task], devices: Sequence[str], state_dir: Path
    ):
        self.runs, self.tasks, self.devices = registry, tasks, tuple(devices)
        self.places: tuple[str, ...] = ()
        """Clusters that runs can be submitted to (clusters.py)."""
        self.locks_dir = state_dir / "locks"
        self.state = QueueState(state_dir / "queue_state.json", registry)
        self.mutex = threading.RLock()
        """Held while a run is changed because of its state, so that the state cannot change meanwhile."""
        self._supervisors: dict[str, subprocess.Popen[bytes]] = {}
        self._retry_at: dict[str, float] = {}

    def require_devices(
        self, devices: Sequence[str], task: Task, launch: LaunchSettings | None = None
    ) -> None:
        """Raise Invalid if a device does not exist, or if `task` would leave some of them idle."""
        if place_of(devices):
            require_launch(self.places, devices[0], task, launch)
            return
        if unknown := sorted(set(devices) - set(self.devices)):
            message = f"This machine has no device {', '.join(unknown)}."
            hint = f"Choose from {', '.join(self.devices)}."
            raise Invalid.of([Problem("", message, hint=hint)], "/devices")
        if len(set(devices)) > 1 and not task.uses_all_devices:
            message = f"{task.title} uses one device and would block the others for other runs."
            raise Invalid.of([Problem("", message, hint="Choose one device.")], "/devices")

    def task_of(self, run_dir: RunDir) -> Task:
        """The task of a run.

        Raises:
            NotNow: this studio does not have that task.
        """
        name = run_dir.read_run().get("trainer", "flow")
        if not isinstance(name, str) or name not in self.tasks:
            hint = f"Available: {', '.join(sorted(self.tasks))}."
            raise NotNow(f"{run_dir.path.name!r} needs {name!r}, which this studio does not have.", hint)
        return self.tasks[name]

    def require_resumable(self, view: RunView, *, is_changed: bool) -> None:
        """Raise NotNow if a run is queued or running, or finished with nothing changed."""
        if not (view.can_resume or (is_changed and view.state == "finished")):
            hint = "To continue a finished run, send `changes`, such as a higher limits.max_steps."
            raise NotNow(f"{view.id!r} is {view.state}: there is nothing to resume.", hint)

    def resume(
        self,
        run_dir: RunDir,
        devices: Sequence[str],
        *,
        first: bool,
        is_changed: bool = False,
        launch: LaunchSettings | None = None,
    ) -> RunView:
        """Queue a run that is over again.

        Raises:
            NotNow: it is not over, or it is finished and was not changed.
            Invalid: there is no such device.
        """
        self.require_devices(devices, self.task_of(run_dir), launch)
        run_id = run_dir.path.name
        with self.mutex:
            view = self.runs.refresh(run_id)
            self.require_resumable(view, is_changed=is_changed)
            self.runs.notes.pop(run_id, None)
            self._retry_at.pop(run_id, None)
            record = ProcessRecord.read(run_dir.path)
            previous = () if record and record.any_device else view.devices
            available = [device for device in previous if device in (*self.devices, *self.places)]
            is_resumed = view.state != "created"
            self.submit(run_dir, devices or available, first=first, resume=is_resumed, launch=launch)
            return self.runs.refresh(run_id)

    def submit(
        self,
        run_dir: RunDir,
        devices: Sequence[str],
        *,
        first: bool = False,
        resume: bool = False,
        launch: LaunchSettings | None = None,
    ) -> None:
        """Queue a run, last or first. It starts when its devices (none given: any one) are free."""
        with self.mutex:
            positions = [run.position for run in self.runs.store.queue() if run.position is not None]
            position = min(positions, default=1.0) - 1 if first else max(positions, default=0.0) + 1
            chosen = tuple(dict.fromkeys(devices))
            QueueEntry(
                id=uuid.uuid4().hex,
                position=position,
                devices=chosen,
                resume=resume,
                any_device=not chosen and self._needs_device(run_dir),
                launch=launch,
            ).write(run_dir.path)

    def _needs_device(self, run_dir: RunDir) -> bool:
        task = self.tasks.get(run_dir.read_run().get("trainer", "flow"))
        return task is None or task.needs_device

    def delete(self, run_id: str) -> None:
        """Delete a run with everything in its directory.

        Raises:
            NotNow: it is queued or running.
        """
        with self.mutex:
            self.runs.remove(run_id)

    def cancel(self, run_id: str) -> RunView:
        """Remove a run from the queue.

        Raises:
            NotNow: it is not queued.
        """
        return self._change(run_id, None)

    def move(self, run_id: str, before: str | None) -> RunView:
        """Move a queued run before another one, or to the end.

        Raises:
            NotNow: one of them is not queued.
        """
        with self.mutex:
            others = [run for run in self.runs.store.queue() if run.id != run_id]
            positions = [run.position or 0.0 for run in others]
            at = next((i for i, run in enumerate(others) if run.id == before), None)
            if before is not None and at is None:
                raise NotNow(f"{before!r} is not queued.", "GET /api/queue lists queued runs.")
            if at is None:
                return self._change(run_id, max(positions, default=0.0) + 1)
            between = (positions[at - 1] + positions[at]) / 2 if at else positions[0] - 1
            if between in positions:  # no number is left between the two: renumber
                for number, other in enumerate(others):
                    self._change(other.id, float(number))
                between = at - 0.5
            return self._change(run_id, between)

    def _change(self, run_id: str, position: float | None) -> RunView:
        """Move a run, or remove it (no position). Its lock excludes a supervisor that is starting it."""
        path = self.runs.path(run_id)
        with self.mutex:
            lock = hold(lock_path(path))
            try:
                entry = QueueEntry.read(path) if lock is not None else None
                if entry is None:
                    raise NotNow(f"{run_id!r} is not queued.", "GET /api/queue lists queued runs.")
                if position is None:
                    QueueEntry.remove(path)
                    self.state.forget(run_id)
                else:
                    entry.model_copy(update={"position": position}).write(path)
            finally:
                if lock is not None:
                    os.close(lock)
            return self.runs.refresh(run_id)

    def stop(self, run_id: str, *, save: bool) -> RunView:
        """Ask a run to save and stop, or kill it. Its newest checkpoint stays intact either way.

        Raises:
            NotNow: it is not running.
        """
        run_dir = self.runs.require_running(run_id)
        try:
            StopRequest(kind="stop" if save else "kill", time=time.time()).write(run_dir.path)
        except OSError as error:
            if not is_disk_full(error):  # runs can be stopped on a full disk
                raise
        request_stop(run_dir, save=save)
        return self.runs.refresh(run_id)

    def control(self, run_id: str, action: Control) -> RunView:
        """Ask a run to stop, save a checkpoint or generate previews at its next step.

        Raises:
            NotNow: it is not running, has not started training, or its task cannot do that.
        """
        if action == "stop":
            return self.stop(run_id, save=True)
        run_dir = self.runs.require_running(run_id)
        task, view = self.task_of(run_dir), self.runs.get(run_id)
        if action not in task.supported_controls:
            supported = ", ".join(sorted(task.supported_controls)) or "none"
            hint = f"Supported controls: {supported}. Stop or kill works for every run."
            raise NotNow(f"{run_id!r}: {task.title} does not support {action!r} while running.", hint)
        if view.phase in (None, "loading", "pending"):
            raise NotNow(
                f"{run_id!r} is {'waiting' if view.phase == 'pending' else 'still loading'}.",
                "Retry when its phase is 'training'.",
            )
        require_reach(view)
        run_dir.request(action)
        return view

    @property
    def is_busy(self) -> bool:
        """True if a run is running, or queued and not held back by a pause."""
        store = self.runs.store
        return bool(store.with_states("running", "stopping") or (store.queue() and not self.state.pause))

    def set_state(self, on_fail: OnFail | None, is_paused: bool | None) -> None:
        """Set the reaction to a failed run; pause or resume the queue."""
        with self.mutex:
            self.state.set(on_fail, is_paused)
            self.runs.refresh_active()  # the note of each queued run says why it waits

    def tick(self) -> None:
        """Reap supervisors, repeat stop requests, pause after a failure, start what can start."""
        with self.mutex:
            self._reap_supervisors()
            for run in self.runs.refresh_active():
                if run.state == "stopping":
                    with isolate_errors(partial(self._note, run.id)):
                        self._repeat_stop_request(RunDir(self.runs.path(run.id)))
            self.state.update()
            if self.state.pause:
                return
            held = self._held()
            for run in self.runs.store.queue():
                with isolate_errors(partial(self._note, run.id)):
                    held |= self._start_or_wait(run, held)

    def _start_or_wait(self, run: RunView, held: set[str]) -> set[str]:
        """Start a queued run if possible. Return the devices that runs behind it may not take."""
        entry = QueueEntry.read(self.runs.runs_dir / run.id)
        if entry is None or run.id in self._supervisors:
            return set(run.devices) & set(self.devices)
        if entry.any_device:
            idle = next((device for device in self.devices if device not in held), None)
            chosen = self._choose(run, entry, idle) if idle else None
            return {idle} if idle and chosen and self._launch(run, chosen) else set()
        if held.isdisjoint(entry.devices):
            with isolate_errors(partial(self._note, run.id)):
                self._launch(run, entry)
        # Or a run on several devices would starve: runs behind it would take them one by one.
        return set(entry.devices) & set(self.devices)

    def _choose(self, run: RunView, entry: QueueEntry, device: str) -> QueueEntry | None:
        """The entry with the device noted in it; None if a supervisor is just starting the run."""
        path = self.runs.runs_dir / run.id
        chosen = entry.model_copy(update={"devices": (device,)})
        lock = hold(lock_path(path))
        if lock is None:
            return None
        try:
            # A supervisor removes the entry, and it must not be written again.
            if QueueEntry.read(path) != entry:
                return None
            chosen.write(path)
        except OSError as error:
            self._note(run.id, str(error))
            return None
        finally:
            os.close(lock)
        return chosen

    def _held(self) -> set[str]:
        """The devices in use: locked, of a run about to start, or of one started by hand."""
        held = set[str]()
        for device in self.devices:
            held.add(device)
            with isolate_errors(partial(self._note_unusable_lock, device)):
                if not is_held(self._lock_of(device)):
                    held.discard(device)
        for run in self.runs.store.with_states("running", "stopping"):
            with isolate_errors(partial(self._note, run.id)):
                held |= set(run.devices or self._default_devices(RunDir(self.runs.path(run.id))))
        for name in self._supervisors:
            with isolate_errors(partial(self._note, name)):
                # Not `RunRegistry.path`, which raises if the folder was removed meanwhile.
                entry = QueueEntry.read(self.runs.runs_dir / name)
                held |= set(entry.devices if entry else ())
        return held & set(self.devices)

    def _default_devices(self, run_dir: RunDir) -> tuple[str, ...]:
        """The devices of a run that was started by hand without naming one: the first."""
        return self.devices[:1] if self._needs_device(run_dir) else ()

    def _note_unusable_lock(self, device: str, reason: str) -> None:
        """Note at the runs queued for `device` that nothing can start on it."""
        for run in self.runs.store.queue():
            if device in run.devices:
                self._note(run.id, f"The lock file of {device} cannot be used: {reason}")

    def _lock_of(self, device: str) -> Path:
        return self.locks_dir / f"{device.replace(':', '-')}.lock"

    def _launch(self, run: RunView, entry: QueueEntry) -> bool:
        """Start a supervisor for the run on the devices of its entry. Return False if it cannot start now."""
        run_dir = RunDir(self.runs.path(run.id))
        task = self.tasks.get(run.trainer)
        is_too_soon = time.monotonic() < self._retry_at.get(run.id, 0.0)
        if task is None or is_too_soon:
            return False
        if place_of(entry.devices):
            command = follow_command(run_dir, entry.devices[0], entry.launch or settings_of(run_dir))
        elif unknown := set(entry.devices) - set(self.devices):
            hint = f"Cancel it, then resume it on one of {', '.join(self.devices)}."
            raise RunError(f"Queued for {', '.join(sorted(unknown))}, which is not on this machine. {hint}")
        else:
            command = task.command(run_dir, entry.resume, entry.devices)
        environment = environment_of(command, entry.devices, run_dir.read_run()["config"])
        self.state.add_started(run.id)
        self.runs.notes.pop(run.id, None)
        spec = LaunchSpec(
            run=str(run_dir.path.absolute()),
            entry=entry.id,
            argv=command.argv,
            cwd=str(command.cwd) if command.cwd else None,
            checkout=str(command.checkout or ""),
            python=command.python or command.argv[0],
            locks=[str(self._lock_of(device)) for device in entry.devices if device in self.devices],
            trainer="" if task.writes_events else task.name,
        )
        with (self.locks_dir / "supervisors.log").open("ab") as log:
            self._supervisors[run.id] = subprocess.Popen(
                [sys.executable, "-m", "flowloom.server.runs.supervisor", spec.to_argument()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return True

    def _note(self, run_id: str, why: str) -> None:
        """Record why a run still waits. It is retried later: the cause may be fixed by then."""
        self.runs.notes[run_id] = why
        self._retry_at[run_id] = time.monotonic() + RETRY_AFTER_S

    def _reap_supervisors(self) -> None:
        for run_id, supervisor in list(self._supervisors.items()):
            status = supervisor.poll()
            if status is None:
                continue
            del self._supervisors[run_id]
            if status not in (RAN, BUSY, NOT_QUEUED):
                self._note(
                    run_id, f"It could not be started (status {status}): see .flowloom/locks/supervisors.log."
                )
            self.runs.refresh_if_present(run_id)

    def _repeat_stop_request(self, run_dir: RunDir) -> None:
        """Repeat a stop request until the run is over: an engine that is loading deletes old ones."""
        if request := StopRequest.read(run_dir.path):
            request_stop(run_dir, save=request.kind == "stop")
