"""`python -m flowloom.server.runs.supervisor SPEC`: a small process per run, detached from the server.

It takes the locks of the run and its devices, removes the run from the queue, starts the run's process in a
new process group, waits for it and records how it ended. The run directory alone says whether a run is
queued, running or over, so a server killed at any moment neither loses a run nor starts it twice.
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
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from flowloom.errors import FlowloomError
from flowloom.locks import hold
from flowloom.run.directory import RunDir
from flowloom.server.runs.process_files import (
    BUSY,
    NOT_QUEUED,
    RAN,
    Exit,
    ProcessRecord,
    QueueEntry,
    StopRequest,
    lock_path,
    start_time,
)

if TYPE_CHECKING:
    from flowloom.server.runs.log_events import LogEventWriter

VISIBLE = ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES")
"""The environment variables that select a process's accelerators."""
_CANNOT_START = 127
_POLL_S = 0.2
_GRACE_S = 10.0
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: orphans of the run become our children, and we reap them


@dataclass(frozen=True)
class LaunchSpec:
    """What to start for a run, and under which locks."""

    run: str
    entry: str
    argv: list[str]
    cwd: str | None
    locks: list[str]
    trainer: str = ""
    """The trainer whose `parse` reads the log. Empty: the process writes its own events."""
    checkout: str = ""
    """The checkout whose code it runs, if not ours."""
    python: str = ""
    """The Python of that code."""

    def to_argument(self) -> str:
        """Return it as one command-line argument."""
        return json.dumps(asdict(self))


def main() -> int:
    """Supervise the run named on the command line. Return 0 if its process was started."""
    spec = LaunchSpec(**json.loads(sys.argv[1]))
    run = Path(spec.run)
    # Clients may request a stop as soon as the lock is held. An older request was for an earlier attempt.
    old_request = StopRequest.read(run)
    locks = [hold(path) for path in (lock_path(run), *map(Path, spec.locks))]
    if None in locks:
        return BUSY
    entry = QueueEntry.read(run)
    if entry is None or entry.id != spec.entry:
        return NOT_QUEUED
    record, folder = _take(run, entry, old_request), _identity(run)
    _outlive_the_server()
    writer = _event_writer(spec, entry) if spec.trainer else None
    with _best_effort():
        _note_command(spec, run)
    process = _start(spec, run, [lock for lock in locks if lock is not None])
    if process is None:
        return RAN
    record.model_copy(update={"pid": process.pid, "started": start_time(process.pid)}).write(run)
    status = _wait(process, writer, lambda: _identity(run) == folder)
    _kill_leftovers(process.pid)
    if _identity(run) != folder:
        # Another run may have this name now: write nothing there.
        return RAN
    with _best_effort():
        if writer:
            writer.end(status)
    with _best_effort():
        Exit(status=status, time=time.time()).write(run)
    return RAN


def _identity(run: Path) -> tuple[int, int] | None:
    """Device and inode of the run's folder, or None."""
    try:
        status = run.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _note_command(spec: LaunchSpec, run: Path) -> None:
    """Append the command to command.txt, ready to paste into a shell.

    Of the environment, only the devices are written: other values may be secret.
    """
    change_dir = f"cd {shlex.quote(spec.cwd)} && " if spec.cwd else ""
    shown = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    words = " ".join(f"{name}={shlex.quote(value)}" for name, value in shown.items())
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with (run / "command.txt").open("a") as file:
        file.write(f"# {when}{_revision(spec)}\n{change_dir}{words} {shlex.join(spec.argv)}\n")


def _revision(spec: LaunchSpec) -> str:
    """The revision of another trainer's checkout, which may change before the next run."""
    if not spec.checkout:
        return ""
    from flowloom.trainers.missing_packages import revision_of

    return f", {spec.checkout}{revision_of(Path(spec.checkout))}"


def _event_writer(spec: LaunchSpec, entry: QueueEntry) -> LogEventWriter | None:
    """The writer of events for a process that writes none."""
    from flowloom.server.runs.log_events import LogEventWriter
    from flowloom.trainers import ALL
    from flowloom.trainers.missing_packages import versions_of

    run_dir = RunDir(spec.run)
    for request in run_dir.control_dir.glob("*"):
        # Requests made to an earlier attempt do not apply to this one.
        request.unlink()
    with _best_effort():
        versions = versions_of(spec.python, Path(spec.checkout))
        return LogEventWriter(
            run_dir, ALL[spec.trainer], entry.devices, resumes=entry.resume, versions=versions
        )
    return None


def _wait(
    process: subprocess.Popen[bytes], writer: LogEventWriter | None, is_here: Callable[[], bool]
) -> int:
    """Wait for the process, and write its events if it writes none.

    End it if it was asked to stop and does not read requests, or if the run's folder is gone.
    """
    ending = 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_POLL_S)
        if ending and time.monotonic() - ending > _GRACE_S:
            _signal(process, signal.SIGKILL)
        elif not ending and not is_here():
            ending = time.monotonic()
            _signal(process, signal.SIGTERM)
        elif writer and is_here():
            with _best_effort():
                writer.update()
                if not ending and writer.must_interrupt():
                    ending = time.monotonic()
                    _signal(process, signal.SIGINT)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _best_effort() -> Generator[None]:
    """Report a failed record and continue: a full disk must not end the run."""
    try:
        yield
    except (OSError, FlowloomError) as error:
        sys.stderr.write(f"{error}\n")


def _take(run: Path, entry: QueueEntry, old_request: StopRequest | None) -> ProcessRecord:
    """Remove the run from the queue: from here on it counts as started."""
    events = run / "events.jsonl"
    record = ProcessRecord(
        entry=entry.id,
        supervisor_pid=os.getpid(),
        supervisor_started=start_time(os.getpid()) or "",
        devices=entry.devices,
        any_device=entry.any_device,
        time=time.time(),
        events_size=events.stat().st_size if events.exists() else 0,
    )
    Exit.remove(run)
    if StopRequest.read(run) == old_request:
        StopRequest.remove(run)
    record.write(run)
    QueueEntry.remove(run)
    return record


def _outlive_the_server() -> None:
    """Ignore the signals of a closed terminal or stopped service: the run decides when it ends."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)


def _start(spec: LaunchSpec, run: Path, locks: list[int]) -> subprocess.Popen[bytes] | None:
    with (run / "log.txt").open("ab") as log:
        try:
            return subprocess.Popen(
                spec.argv,
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=locks,
            )
        except OSError as error:
            message = f"{spec.argv[0]} could not be started: {error.strerror}."
            log.write(f"{message}\n".encode())
            Exit(status=_CANNOT_START, time=time.time(), message=message).write(run)
            return None


def _kill_leftovers(group: int) -> None:
    """Kill what the run left behind, in its process group and outside, and reap every child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for child in psutil.Process().children(recursive=True):
            # Ranks run in separate sessions; orphans of the run are our children.
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
