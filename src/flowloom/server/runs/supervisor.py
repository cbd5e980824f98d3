"""`python -m flowloom.server.runs.supervisor ORDER`: a small process for each run, detached from it.

It takes the run's lock and its devices' locks, takes the run out of the queue, starts the run's process
in a group of its own, waits for it, and notes how it ended. A server that is killed at any moment thus
neither loses a run nor starts it twice: whether a run waits, runs or ended stands in its directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flowloom.errors import FlowloomError
from flowloom.run.directory import RunDir
from flowloom.server.locks import hold
from flowloom.server.runs.process_files import (
    BUSY,
    KEPT,
    NOT_WANTED,
    Exit,
    Keeping,
    Ticket,
    Wish,
    born,
    lock_path,
)

if TYPE_CHECKING:
    from flowloom.server.runs.log_events import Scribe

VISIBLE = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
"""Which accelerators a process may see."""
_CANNOT_START = 127
_LOOK_EVERY_S = 0.2
_GRACE_S = 10.0
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: orphans of the run become ours to bury


@dataclass(frozen=True)
class Order:
    """What is to be kept."""

    run: str
    ticket: str
    argv: list[str]
    cwd: str | None
    locks: list[str]
    trainer: str = ""
    """Whose `parse` reads the log; none: the process writes its events itself."""
    checkout: str = ""
    """Whose code it runs, where that is not ours."""

    def to_argument(self) -> str:
        """As one word of a command line."""
        return json.dumps(asdict(self))


def main() -> int:
    """Keep the run that the command line names; 0 when its process was started."""
    order = Order(**json.loads(sys.argv[1]))
    run = Path(order.run)
    # Whoever sees the lock held may ask for a stop: that wish is for this sitting, an older one is not.
    old_wish = Wish.read(run)
    locks = [hold(path) for path in (lock_path(run), *map(Path, order.locks))]
    if None in locks:
        return BUSY
    ticket = Ticket.read(run)
    if ticket is None or ticket.id != order.ticket:
        return NOT_WANTED
    keeping, folder = _take(run, ticket, old_wish), _identity(run)
    _outlive_the_server()
    scribe = _scribe(order, ticket) if order.trainer else None
    with _noted():
        _note_command(order, run)
    process = _start(order, run, [lock for lock in locks if lock is not None])
    if process is None:
        return KEPT
    keeping.model_copy(update={"pid": process.pid, "born": born(process.pid)}).write(run)
    status = _wait(process, scribe, lambda: _identity(run) == folder)
    _bury(process.pid)
    if _identity(run) != folder:
        # Another run may have its name now: nothing of this one belongs there.
        return KEPT
    with _noted():
        if scribe:
            scribe.end(status)
    with _noted():
        Exit(status=status, time=time.time()).write(run)
    return KEPT


def _identity(run: Path) -> tuple[int, int] | None:
    """Which folder stands at the path of the run; None where there is none."""
    try:
        found = run.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _note_command(order: Order, run: Path) -> None:
    """What is started, as one would type it, below what was before.

    Of the environment it has the devices alone: other values may be secret.
    """
    place = f"cd {shlex.quote(order.cwd)} && " if order.cwd else ""
    shown = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in shown.items())
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with (run / "command.txt").open("a") as file:
        file.write(f"# {when}{_code(order)}\n{place}{words} {shlex.join(order.argv)}\n")


def _code(order: Order) -> str:
    """Which of another trainer's revisions runs: a checkout may be another one tomorrow."""
    if not order.checkout:
        return ""
    from flowloom.trainers.missing_packages import revision_of

    return f", {order.checkout}{revision_of(Path(order.checkout))}"


def _scribe(order: Order, ticket: Ticket) -> Scribe | None:
    """Who writes the events of a process that writes none."""
    from flowloom.server.runs.log_events import Scribe
    from flowloom.trainers import ALL
    from flowloom.trainers.missing_packages import versions_of

    run_dir = RunDir(order.run)
    for request in run_dir.control_dir.glob("*"):
        # What was asked of an earlier sitting is not meant for this one.
        request.unlink()
    with _noted():
        versions = versions_of(order.argv[0], Path(order.checkout))
        return Scribe(run_dir, ALL[order.trainer], ticket.devices, resumes=ticket.resume, versions=versions)
    return None


def _wait(process: subprocess.Popen[bytes], scribe: Scribe | None, is_here: Callable[[], bool]) -> int:
    """Wait for the process, and write its events where it writes none.

    It is ended where it was asked to stop and cannot hear that, and where the run's folder is no longer
    there: nobody would see what it does.
    """
    ending = 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK_EVERY_S)
        if ending and time.monotonic() - ending > _GRACE_S:
            _signal(process, signal.SIGKILL)
        elif not ending and not is_here():
            ending = time.monotonic()
            _signal(process, signal.SIGTERM)
        elif scribe and is_here():
            with _noted():
                scribe.look()
                if not ending and scribe.is_to_end():
                    ending = time.monotonic()
                    _signal(process, signal.SIGINT)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    """Notes are worth less than the run: a disk that is full ends none."""
    try:
        yield
    except (OSError, FlowloomError) as error:
        sys.stderr.write(f"{error}\n")


def _take(run: Path, ticket: Ticket, old_wish: Wish | None) -> Keeping:
    """Take the run out of the queue; from here on it has been started."""
    events = run / "events.jsonl"
    keeping = Keeping(
        ticket=ticket.id,
        keeper=os.getpid(),
        keeper_born=born(os.getpid()) or "",
        devices=ticket.devices,
        anywhere=ticket.anywhere,
        time=time.time(),
        events_size=events.stat().st_size if events.exists() else 0,
    )
    Exit.remove(run)
    if Wish.read(run) == old_wish:
        Wish.remove(run)
    keeping.write(run)
    Ticket.remove(run)
    return keeping


def _outlive_the_server() -> None:
    """Go on when a terminal closes or a service is stopped: the run itself decides when it ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)


def _start(order: Order, run: Path, locks: list[int]) -> subprocess.Popen[bytes] | None:
    with (run / "log.txt").open("ab") as log:
        try:
            return subprocess.Popen(
                order.argv,
                cwd=order.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=locks,
            )
        except OSError as error:
            message = f"{order.argv[0]} could not be started: {error.strerror}."
            log.write(f"{message}\n".encode())
            Exit(status=_CANNOT_START, time=time.time(), message=message).write(run)
            return None


def _bury(group: int) -> None:
    """End what the run left behind, in its group and beside it, and take in every exit status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for child in psutil.Process().children(recursive=True):
            # Ranks have sessions of their own; orphans of the run are ours.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
