"""All exceptions that Flowloom raises.

FlowloomError
├── ConfigError           the configuration is invalid; lists every problem
├── DataError             a dataset cannot be used (a file, a row, too many skipped rows)
│   ├── CacheError        a cache, or one of its shards, cannot be used
│   └── ImageError        one image cannot be used; the row is skipped and counted
├── SourceError           a store cannot be read or written
│   ├── NotFound          it has no such object
│   ├── Denied            it denies access
│   │   └── StoreDenied   to everything in it: the keys are wrong, expired or revoked
│   └── Unavailable       it did not respond correctly in time
│       └── StoreDown     it cannot be reached at all
├── WeightsError          a weights file is missing, unsafe or does not fit the network
├── RunError              a run directory cannot be made, read or resumed
│   ├── CheckpointError   a checkpoint is incomplete, damaged, or not finite
│   └── DamagedError      one of its files is damaged or of the wrong kind
└── TrainingError         training failed
    ├── DivergedError     the loss, the gradient or a weight is not a finite number
    ├── OutOfMemoryError  the device has no memory left
    ├── CompileError      torch.compile could not compile a block
    ├── RankError         another rank is missing, ended, or sees other files
    └── DiskFullError     a checkpoint or sample could not be written

Messages say what is wrong and where, hints what to do.
"""

import errno
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flowloom.printable import printable


class FlowloomError(Exception):
    """The root: the command line prints its message and exits with 2, without a traceback.

    Messages pass through `printable`, which removes credentials.
    """

    def __init__(self, *args: object):
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))

    hint = ""
    """Hint: what to do, if that depends on more than the error itself."""


ProblemCode = Literal["missing", "unknown-key", "wrong-type", "out-of-range", "not-found", "invalid"]
"""The kinds of problems that a program may treat differently; `invalid` is everything else."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration."""

    where: str
    """The key as written in the file, or the flag: `dataloader.batch_size`."""
    message: str
    """The problem as a sentence."""
    code: ProblemCode = "invalid"
    hint: str = ""
    """What to do."""

    def __post_init__(self) -> None:
        for name in ("where", "message", "hint"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    @property
    def text(self) -> str:
        """The message, followed by the hint."""
        return f"{self.message} {self.hint}".rstrip()

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" if self.where else self.text


class ConfigError(FlowloomError):
    """The configuration cannot be used; `problems` lists everything wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]):
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{source}: {count}.{lines}")


class DataError(FlowloomError):
    """A dataset, one of its files, or too many of its rows cannot be used."""


class CacheError(DataError):
    """A cache, or one of its shards, cannot be used."""


class ImageError(DataError):
    """One image cannot be used; the loader skips its row, counts and reports it."""


class SourceError(FlowloomError):
    """A store cannot be read or written; the message holds no key, token or signature."""


class NotFound(SourceError):
    """The store has no such object."""


class Denied(SourceError):
    """Access is denied: a wrong or expired key, or none."""

    def __init__(self, message: str, *, said: str = "", is_about_keys: bool = False):
        super().__init__(message)
        self.said = said
        """The store's status and code, such as `403 AccessDenied`; empty if no request was sent."""
        self.is_about_keys = is_about_keys
        """True if its code concerns the keys: then everything is denied."""


class StoreDenied(Denied):
    """The store denies access to everything in it. No row is to blame."""


class Unavailable(SourceError):
    """The store did not respond as it should; a retry may help."""

    def __init__(self, message: str, *, is_busy: bool = False, retry_after_s: float = 0.0):
        super().__init__(message)
        self.is_busy = is_busy
        """True if it asked for fewer requests (503 SlowDown, 429)."""
        self.retry_after_s = retry_after_s
        """Time to wait before the next request, as it asked."""


class StoreDown(Unavailable):
    """The store as a whole cannot be reached. No row is to blame."""


class WeightsError(FlowloomError):
    """A weights file is missing, unsafe to open, or does not fit the network."""


class RunError(FlowloomError):
    """A run directory cannot be made, read or resumed."""


class CheckpointError(RunError):
    """A checkpoint is incomplete, damaged, or holds values that are not finite."""

    def __init__(self, folder: Path, reason: object):
        super().__init__(f"{folder}: this checkpoint cannot be used: {reason}")
        self.folder = folder


class DamagedError(RunError):
    """A file in a run directory is damaged, of the wrong kind, or not ours to read."""


class TrainingError(FlowloomError):
    """Training failed; the last checkpoint is complete."""


class DivergedError(TrainingError):
    """The loss, the gradient or a weight is not a finite number."""

    def __init__(self, step: int, reason: str):
        super().__init__(
            f"step {step}: {reason}. Use a lower training.lr, set optimizer.max_grad_norm to 1, or leave out "
            "the rows that the last steps trained."
        )
        self.step = step


class OutOfMemoryError(TrainingError):
    """The device has no memory left for this configuration."""


class CompileError(TrainingError):
    """torch.compile could not compile a block of the network."""


class RankError(TrainingError):
    """Another rank of the run did not join, ended, or sees other files."""


class DiskFullError(TrainingError):
    """A checkpoint, sample or event could not be written because the disk is full."""

    def __init__(self, message: str, *, can_be_freed: bool = True):
        super().__init__(message)
        self.can_be_freed = can_be_freed
        """True if deleting other files makes room; not if the file itself is too large."""


_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this process or file system allows",
}


def is_disk_full(error: OSError) -> bool:
    """True if the system reported no room: on the disk, in the quota, or in the file size limit."""
    return error.errno in _NO_ROOM


def disk_full(path: Path, error: OSError, num_bytes: int | None = None) -> DiskFullError:
    """The error of a file or folder at `path` of `num_bytes` that found no room, by the system's `error`."""
    reason = _NO_ROOM[error.errno or errno.ENOSPC]
    facts = [] if num_bytes is None else [f"{size_text(num_bytes)} needed"]
    if error.errno == errno.ENOSPC and (free := _free_bytes(path)) is not None:
        facts.append(f"{size_text(free)} free")
    numbers = f" ({', '.join(facts)})" if facts else ""
    if error.errno == errno.EFBIG:
        message = f"{path}: {reason}{numbers}. Raise the limit (ulimit -f), or use another disk."
        return DiskFullError(message, can_be_freed=False)
    return DiskFullError(f"{path}: {reason}{numbers}. Make room, then try again.")


def _free_bytes(path: Path) -> int | None:
    for folder in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


def size_text(num_bytes: float) -> str:
    """A size in the unit in which it is at least 1: `0 bytes`, `1.5 KiB`, `16.6 GiB`."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= size:
            return f"{num_bytes / size:,.1f} {unit}"
    return f"{num_bytes:.0f} bytes"


MAX_LINE = 400


def one_line(text: str) -> str:
    """The first line of `text` that says something, cut at `MAX_LINE` characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 3]}..."
