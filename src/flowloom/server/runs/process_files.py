"""The studio's records of a run, in `studio/` inside its directory. The queue consists of nothing else.

queue.json          the run waits: its position and devices; removed when the run starts
process.json        its supervisor and process, since when, on which devices
exit.json           how its process ended
stop_request.json   a requested stop
lock                held while any of its processes lives
gpu_usage.jsonl     load, memory, temperature and power of its GPUs every ten seconds (gpu_usage.py)
preparing           the run is being created; if a studio finds it at start-up, it deletes the run
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from flowloom.files import read_plain, write_json
from flowloom.launchers.base import LaunchSettings

_MAX_BYTES = 2**20
RAN, BUSY, NOT_QUEUED = 0, 3, 4
"""Exit statuses of a supervisor: it ran the run; a lock was taken; the run had left the queue."""


class Record(BaseModel):
    """One of the files. An invalid file counts as missing."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    file: ClassVar[str]
    old_file: ClassVar[str] = ""
    """The file's name in runs of earlier versions."""

    @classmethod
    def read(cls, run_path: Path) -> Self | None:
        """Return the record of the run at `run_path`, or None.

        Raises:
            OSError: the file cannot be read, or is not a file.
        """
        for name in filter(None, (cls.file, cls.old_file)):
            try:
                return cls.model_validate_json(read_plain(run_path / "studio" / name, _MAX_BYTES))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except ValidationError:
                return None
        return None

    def write(self, run_path: Path) -> None:
        """Write the record atomically and flush it to the disk."""
        folder = run_path / "studio"
        folder.mkdir(exist_ok=True)
        write_json(folder / self.file, self.model_dump(mode="json"))

    @classmethod
    def remove(cls, run_path: Path) -> None:
        """Remove the record, if there is one."""
        for name in filter(None, (cls.file, cls.old_file)):
            (run_path / "studio" / name).unlink(missing_ok=True)


class QueueEntry(Record):
    """A run's place in the queue."""

    file: ClassVar[str] = "queue.json"
    id: str
    position: float
    devices: tuple[str, ...]
    resume: bool = False
    any_device: bool = Field(default=False, validation_alias=AliasChoices("any_device", "anywhere"))
    """No device was chosen: the run starts on any idle one, which is then noted in `devices`."""
    launch: LaunchSettings | None = None
    """The machines, if the device is a cluster."""


class ProcessRecord(Record):
    """The processes of a run: its supervisor, and the process it started, which leads its own group."""

    file: ClassVar[str] = "process.json"
    entry: str = Field(validation_alias=AliasChoices("entry", "ticket"))
    """Id of the queue entry it was started from."""
    supervisor_pid: int = Field(validation_alias=AliasChoices("supervisor_pid", "keeper"))
    supervisor_started: str = Field(validation_alias=AliasChoices("supervisor_started", "keeper_born"))
    pid: int | None = None
    started: str | None = Field(default=None, validation_alias=AliasChoices("started", "born"))
    devices: tuple[str, ...] = ()
    any_device: bool = Field(default=False, validation_alias=AliasChoices("any_device", "anywhere"))
    """As in its queue entry: a resume is not bound to these devices."""
    time: float
    events_size: int = 0
    """Size of events.jsonl at the start: everything before it belongs to earlier attempts."""


class Exit(Record):
    """How a run's process ended. A negative status is the number of a signal."""

    file: ClassVar[str] = "exit.json"
    status: int
    time: float
    message: str = ""


class StopRequest(Record):
    """A requested stop: `stop` saves first, `kill` does not."""

    file: ClassVar[str] = "stop_request.json"
    old_file: ClassVar[str] = "wish.json"
    kind: Literal["stop", "kill"]
    time: float


def lock_path(run_path: Path) -> Path:
    """The lock that a run's processes hold."""
    return run_path / "studio" / "lock"


def start_time(pid: int) -> str | None:
    """When a process started, to detect a reused PID. None: no such process.

    In clock ticks since boot, so that setting the clock does not change it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return _start_time_without_proc(pid) if not Path("/proc/self").exists() else None
    state, *fields = stat.rpartition(") ")[2].split()
    return None if state in "ZX" else f"{boot}:{fields[18]}"


def _start_time_without_proc(pid: int) -> str | None:
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int | None, started: str | None) -> bool:
    """True if the recorded process still runs."""
    return pid is not None and started is not None and pid != os.getpid() and start_time(pid) == started
