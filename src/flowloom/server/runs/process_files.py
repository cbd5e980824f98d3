"""What the studio notes of a run, in `studio/` inside its directory: all that the queue is made of.

queue.json      it waits: its place, its devices; gone once it was started
process.json    who keeps it, since when, on which devices
exit.json       how its process ended
wish.json       a stop that was asked for
lock            held as long as any of its processes lives
cards.jsonl     what its cards did, a line every ten seconds (cards.py)
preparing       it is being made; a run that still has it when a studio starts never was
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from flowloom.files import read_plain, write_json

_MOST_BYTES = 2**20
KEPT, BUSY, NOT_WANTED = 0, 3, 4
"""Exit statuses of a keeper: it ran; a lock was taken; the run left the queue meanwhile."""


class Record(BaseModel):
    """One of the files; one that is not valid counts as missing."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    file: ClassVar[str]

    @classmethod
    def read(cls, run_path: Path) -> Self | None:
        """What is noted of the run at `run_path`.

        Raises:
            OSError: it cannot be read, or is not a file.
        """
        try:
            return cls.model_validate_json(read_plain(run_path / "studio" / cls.file, _MOST_BYTES))
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None

    def write(self, run_path: Path) -> None:
        """Note it, whole or not at all, and on the disk."""
        folder = run_path / "studio"
        folder.mkdir(exist_ok=True)
        write_json(folder / self.file, self.model_dump(mode="json"))

    @classmethod
    def remove(cls, run_path: Path) -> bool:
        """Whether it was there; it no longer is."""
        try:
            (run_path / "studio" / cls.file).unlink()
        except FileNotFoundError:
            return False
        return True


class Ticket(Record):
    """A place in the queue."""

    file: ClassVar[str] = "queue.json"
    id: str
    position: float
    devices: tuple[str, ...]
    resume: bool = False
    anywhere: bool = False
    """No device was chosen: it starts on any one that is idle, and `devices` says which when it does."""


class Keeping(Record):
    """The processes of a run: the keeper, and the one it started, the head of its own process group."""

    file: ClassVar[str] = "process.json"
    ticket: str
    keeper: int
    keeper_born: str
    pid: int | None = None
    born: str | None = None
    devices: tuple[str, ...] = ()
    anywhere: bool = False
    """As its ticket said: a resume is not bound to these devices."""
    time: float
    events_size: int = 0
    """How long events.jsonl was before: what stands there belongs to earlier sittings."""


class Exit(Record):
    """How a run's process ended; a negative status is the number of a signal."""

    file: ClassVar[str] = "exit.json"
    status: int
    time: float
    message: str = ""


class Wish(Record):
    """A stop that was asked for: `stop` saves before, `kill` does not."""

    file: ClassVar[str] = "wish.json"
    kind: Literal["stop", "kill"]
    time: float


def lock_path(run_path: Path) -> Path:
    """The lock that a run's processes hold."""
    return run_path / "studio" / "lock"


def born(pid: int) -> str | None:
    """When a process began, so that a number used anew is told apart; None when there is none.

    In ticks since this boot: no clock that is set changes it.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return _born_elsewhere(pid) if not Path("/proc/self").exists() else None
    state, *fields = stat.rpartition(") ")[2].split()
    return None if state in "ZX" else f"{boot}:{fields[18]}"


def _born_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int | None, since: str | None) -> bool:
    """Whether the process that was noted is still this one."""
    return pid is not None and since is not None and pid != os.getpid() and born(pid) == since
