"""The queue: which run goes next, on which devices, and what is asked of those that run.

All of it stands in the run directories (records.py); the devices' locks are the system's. This object
can be dropped at any moment and made again: it will find the same queue and the same runs.
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
from typing import Any

from flowloom.config.secrets import may_need_secrets
from flowloom.errors import Problem, RunError, is_disk_full
from flowloom.run.directory import Control, RunDir
from flowloom.run.task import Command, Task
from flowloom.server.background import on_its_own
from flowloom.server.endpoints import environ_for_processes
from flowloom.server.locks import hold, is_held
from flowloom.server.problems import Invalid, NotNow
from flowloom.server.runs.process_files import BUSY, KEPT, NOT_WANTED, Keeping, Ticket, Wish, lock_path
from flowloom.server.runs.processes import press
from flowloom.server.runs.queue_state import OnFail, Standing
from flowloom.server.runs.registry import Shelf
from flowloom.server.runs.supervisor import Order
from flowloom.server.runs.view import RunView

SECONDS_UNTIL_ANOTHER_TRY = 30.0


class Queue:
    """Starts what waits as soon as its devices are free; `tick` does all that is due."""

    def __init__(self, shelf: Shelf, tasks: Mapping[str, Task], devices: Sequence[str], state_dir: Path):
        self.shelf, self.tasks, self.devices = shelf, tasks, tuple(devices)
        self.locks_dir = state_dir / "locks"
        self.standing = Standing(state_dir / "standing.json", shelf)
        self.mutex = threading.RLock()
        """Held by whoever changes a run because of how it stands: until then it stands so."""
        self._keepers: dict[str, subprocess.Popen[bytes]] = {}
        self._try_again_at: dict[str, float] = {}

    def require_devices(self, devices: Sequence[str], task: Task) -> None:
        """Raises Invalid where one of `devices` is not here, or `task` would leave some of them idle."""
        if unknown := sorted(set(devices) - set(self.devices)):
            message = f"{', '.join(unknown)}: the devices here are {', '.join(self.devices)}."
            raise Invalid.of([Problem("", message)], "/devices")
        if len(set(devices)) > 1 and not task.uses_all_devices:
            message = f"{task.title} uses one device, and would keep the others from other runs: choose one."
            raise Invalid.of([Problem("", message)], "/devices")

    def task_of(self, run_dir: RunDir) -> Task:
        """Whose run it is.

        Raises:
            NotNow: of a task that this studio does not have.
        """
        name = run_dir.read_run().get("trainer", "flow")
        if not isinstance(name, str) or name not in self.tasks:
            todo = f"There are {', '.join(sorted(self.tasks))}."
            raise NotNow(f"{run_dir.path.name!r} is a run of {name!r}, which is not here.", todo)
        return self.tasks[name]

    def require_rest(self, view: RunView, *, is_changed: bool) -> None:
        """Raises NotNow where a run waits or runs, or is finished and nothing was changed."""
        if not (view.can_resume or (is_changed and view.state == "finished")):
            todo = "A run that is finished goes on with `changes`, such as a higher limit."
            raise NotNow(f"{view.id!r} is {view.state}: there is nothing to go on with.", todo)

    def resume(
        self, run_dir: RunDir, devices: Sequence[str], *, first: bool, is_changed: bool = False
    ) -> RunView:
        """Queue a run that is over, again.

        Raises:
            NotNow: it is not, or it is finished and was not changed.
            Invalid: there is no such device.
        """
        self.require_devices(devices, self.task_of(run_dir))
        run_id = run_dir.path.name
        with self.mutex:
            view = self.shelf.look(run_id)
            self.require_rest(view, is_changed=is_changed)
            self.shelf.notes.pop(run_id, None)
            self._try_again_at.pop(run_id, None)
            keeping = Keeping.read(run_dir.path)
            known = () if keeping and keeping.anywhere else view.devices
            here = [device for device in known if device in self.devices]
            self.submit(run_dir, devices or here, first=first, resume=view.state != "created")
            return self.shelf.look(run_id)

    def submit(
        self, run_dir: RunDir, devices: Sequence[str], *, first: bool = False, resume: bool = False
    ) -> None:
        """Queue a run, last or first; it starts when its devices (none named: any one) are free."""
        with self.mutex:
            places = [run.position for run in self.shelf.store.queue() if run.position is not None]
            position = min(places, default=1.0) - 1 if first else max(places, default=0.0) + 1
            wanted = tuple(dict.fromkeys(devices))
            Ticket(
                id=uuid.uuid4().hex,
                position=position,
                devices=wanted,
                resume=resume,
                anywhere=not wanted and self._needs_device(run_dir),
            ).write(run_dir.path)

    def _needs_device(self, run_dir: RunDir) -> bool:
        task = self.tasks.get(run_dir.read_run().get("trainer", "flow"))
        return task is None or task.needs_device

    def delete(self, run_id: str) -> None:
        """Delete a run and all that it made.

        Raises:
            NotNow: it waits or runs.
        """
        with self.mutex:
            self.shelf.remove(run_id)

    def cancel(self, run_id: str) -> RunView:
        """Take a run that waits out of the queue.

        Raises:
            NotNow: it does not wait.
        """
        return self._change(run_id, None)

    def move(self, run_id: str, before: str | None) -> RunView:
        """Put a run that waits before another one, or last.

        Raises:
            NotNow: it does not wait, or the other one does not.
        """
        with self.mutex:
            others = [run for run in self.shelf.store.queue() if run.id != run_id]
            places = [run.position or 0.0 for run in others]
            at = next((i for i, run in enumerate(others) if run.id == before), None)
            if before is not None and at is None:
                raise NotNow(f"{before!r} does not wait in the queue.", "GET /api/queue shows who does.")
            if at is None:
                return self._change(run_id, max(places, default=0.0) + 1)
            between = (places[at - 1] + places[at]) / 2 if at else places[0] - 1
            if between in places:  # halved so often that no number is left there
                for number, other in enumerate(others):
                    self._change(other.id, float(number))
                between = at - 0.5
            return self._change(run_id, between)

    def _change(self, run_id: str, position: float | None) -> RunView:
        """Move or take out, under the run's lock: a keeper that starts it has it, or waits for it."""
        path = self.shelf.path(run_id)
        with self.mutex:
            lock = hold(lock_path(path))
            try:
                ticket = Ticket.read(path) if lock is not None else None
                if ticket is None:
                    raise NotNow(f"{run_id!r} does not wait in the queue.", "GET /api/queue shows who does.")
                if position is None:
                    Ticket.remove(path)
                    self.standing.forget(run_id)
                else:
                    ticket.model_copy(update={"position": position}).write(path)
            finally:
                if lock is not None:
                    os.close(lock)
            return self.shelf.look(run_id)

    def stop(self, run_id: str, *, save: bool) -> RunView:
        """Ask a run to save and stop, or end it now; its newest checkpoint stays whole either way.

        Raises:
            NotNow: it does not run.
        """
        run_dir = self.shelf.running(run_id)
        try:
            Wish(kind="stop" if save else "kill", time=time.time()).write(run_dir.path)
        except OSError as error:
            if not is_disk_full(error):  # a full disk keeps nobody from stopping a run
                raise
        press(run_dir, save=save)
        return self.shelf.look(run_id)

    def ask(self, run_id: str, what: Control) -> RunView:
        """Ask a run to save or draw, or to stop, at its next step.

        Raises:
            NotNow: it does not run, or has not begun to train, or its task cannot do that.
        """
        if what == "stop":
            return self.stop(run_id, save=True)
        run_dir = self.shelf.running(run_id)
        task, view = self.task_of(run_dir), self.shelf.get(run_id)
        if what not in task.supported_controls:
            able = ", ".join(sorted(task.supported_controls)) or "nothing"
            todo = f"It can be asked for {able}; stop it, or kill it."
            raise NotNow(f"{run_id!r} cannot be asked for a {what}: {task.title} has no such thing.", todo)
        if view.phase in (None, "loading"):
            raise NotNow(f"{run_id!r} still loads.", "Ask again when its phase is 'training'.")
        run_dir.request(what)
        return view

    @property
    def is_busy(self) -> bool:
        """Whether a run runs, or one waits that will."""
        store = self.shelf.store
        return bool(store.with_states("running", "stopping") or (store.queue() and not self.standing.pause))

    def set_standing(self, on_fail: OnFail | None, is_paused: bool | None) -> None:
        """Say what a run that fails does to the queue; pause it, or let it go on."""
        with self.mutex:
            self.standing.set(on_fail, is_paused)
            # Those that wait say why.
            self.shelf.look_at_active()

    def tick(self) -> None:
        """Bury keepers that ended, insist on stops, pause after a failure, start what can start."""
        with self.mutex:
            self._bury()
            for run in self.shelf.look_at_active():
                if run.state == "stopping":
                    with on_its_own(partial(self._note, run.id)):
                        self._insist(RunDir(self.shelf.path(run.id)))
            self.standing.look()
            if self.standing.pause:
                return
            held = self._held()
            for run in self.shelf.store.queue():
                with on_its_own(partial(self._note, run.id)):
                    held |= self._start_or_wait(run, held)

    def _start_or_wait(self, run: RunView, held: set[str]) -> set[str]:
        """Start a run that waits if it can; the devices that it keeps from those behind it."""
        ticket = Ticket.read(self.shelf.runs_dir / run.id)
        if ticket is None or run.id in self._keepers:
            return set(run.devices)
        if ticket.anywhere:
            idle = next((device for device in self.devices if device not in held), None)
            chosen = self._choose(run, ticket, idle) if idle else None
            return {idle} if idle and chosen and self._launch(run, chosen) else set()
        if held.isdisjoint(ticket.devices):
            with on_its_own(partial(self._note, run.id)):
                self._launch(run, ticket)
        # A run on several devices gets its turn: those behind it do not take them one by one.
        return set(ticket.devices)

    def _choose(self, run: RunView, ticket: Ticket, device: str) -> Ticket | None:
        """The ticket with the device noted in it; None where another keeper is just starting the run."""
        path = self.shelf.runs_dir / run.id
        chosen = ticket.model_copy(update={"devices": (device,)})
        lock = hold(lock_path(path))
        if lock is None:
            return None
        try:
            # A keeper removes the ticket, and nothing may bring it back.
            if Ticket.read(path) != ticket:
                return None
            chosen.write(path)
        except OSError as error:
            self._note(run.id, str(error))
            return None
        finally:
            os.close(lock)
        return chosen

    def _held(self) -> set[str]:
        """The devices that are taken: locked, of a run about to start, or of one started by hand."""
        held = set[str]()
        for device in self.devices:
            held.add(device)
            with on_its_own(partial(self._cannot_lock, device)):
                if not is_held(self._lock_of(device)):
                    held.discard(device)
        for run in self.shelf.store.with_states("running", "stopping"):
            with on_its_own(partial(self._note, run.id)):
                held |= set(run.devices or self._device_of_unknown(RunDir(self.shelf.path(run.id))))
        for name in self._keepers:
            with on_its_own(partial(self._note, name)):
                # Not by `shelf.path`: somebody may have removed the folder under its keeper.
                ticket = Ticket.read(self.shelf.runs_dir / name)
                held |= set(ticket.devices if ticket else ())
        return held

    def _device_of_unknown(self, run_dir: RunDir) -> tuple[str, ...]:
        """Of a run that was started by hand and names no device: it takes the first one."""
        return self.devices[:1] if self._needs_device(run_dir) else ()

    def _cannot_lock(self, device: str, reason: str) -> None:
        """Say at the runs that wait for `device` that nothing can be started on it."""
        for run in self.shelf.store.queue():
            if device in run.devices:
                self._note(run.id, f"The lock of {device} cannot be used: {reason}")

    def _lock_of(self, device: str) -> Path:
        return self.locks_dir / f"{device.replace(':', '-')}.lock"

    def _launch(self, run: RunView, ticket: Ticket) -> bool:
        """Whether a keeper was started for the run, on the devices of its ticket."""
        run_dir = RunDir(self.shelf.path(run.id))
        task = self.tasks.get(run.trainer)
        is_too_soon = time.monotonic() < self._try_again_at.get(run.id, 0.0)
        if task is None or is_too_soon:
            return False
        if unknown := set(ticket.devices) - set(self.devices):
            todo = f"Cancel it, and resume it on one of {', '.join(self.devices)}."
            raise RunError(f"It waits for {', '.join(sorted(unknown))}, which is not here. {todo}")
        command = task.command(run_dir, ticket.resume, ticket.devices)
        environment = _environment(command, ticket.devices, run_dir.read_run()["config"])
        self.standing.begins(run.id)
        self.shelf.notes.pop(run.id, None)
        order = Order(
            run=str(run_dir.path.absolute()),
            ticket=ticket.id,
            argv=command.argv,
            cwd=str(command.cwd) if command.cwd else None,
            checkout=str(command.checkout or ""),
            locks=[str(self._lock_of(device)) for device in ticket.devices],
            trainer="" if task.writes_events else task.name,
        )
        with (self.locks_dir / "keepers.log").open("ab") as log:
            self._keepers[run.id] = subprocess.Popen(
                [sys.executable, "-m", "flowloom.server.runs.supervisor", order.to_argument()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        return True

    def _note(self, run_id: str, why: str) -> None:
        """Say why a run still waits; it is tried again now and then, as the cause may be mended meanwhile."""
        self.shelf.notes[run_id] = why
        self._try_again_at[run_id] = time.monotonic() + SECONDS_UNTIL_ANOTHER_TRY

    def _bury(self) -> None:
        for run_id, keeper in list(self._keepers.items()):
            status = keeper.poll()
            if status is None:
                continue
            del self._keepers[run_id]
            if status not in (KEPT, BUSY, NOT_WANTED):
                self._note(run_id, f"It could not be started (status {status}): see the studio's log.")
            self.shelf.look_again(run_id)

    def _insist(self, run_dir: RunDir) -> None:
        """An engine that still loads clears old wishes away: ask until it is over."""
        wish = Wish.read(run_dir.path)
        if wish:
            press(run_dir, save=wish.kind == "stop")


def _environment(command: Command, devices: Sequence[str], config: Any) -> dict[str, str]:
    """The run's: ours, the secrets, the trainer's, and the accelerators it may see.

    Raises:
        ConfigError: the file with the secrets cannot be used, and the run may need one.
    """
    cards = [device.removeprefix("cuda:") for device in devices if device.startswith("cuda:")]
    # By their places on the bus, as nvidia-smi counts them; CUDA itself would begin with the fastest.
    visible = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(cards)}
    ours = environ_for_processes(needs_secrets=may_need_secrets(config))
    return {**ours, **command.env, **(visible if devices else {})}
