"""Everything that Flowloom raises on purpose.

FlowloomError
├── ConfigError           the configuration is wrong; carries every problem at once
├── DataError             a data set cannot be used (a file, a row, too many skipped rows)
│   ├── CacheError        a cache, or one of its shards, cannot be used
│   └── ImageError        one image cannot be used; the row is skipped and counted
├── SourceError           a store cannot give or take something
│   ├── NotFound          it has no such thing
│   ├── Denied            it does not let us
│   └── Unavailable       it did not answer as it should, for as long as we waited
├── WeightsError          a weights file is missing, unsafe or does not fit the network
├── RunError              a run directory cannot be made, read or resumed
└── TrainingError         the run itself went wrong
    ├── DivergedError     the loss or the gradient is not a number
    ├── OutOfMemoryError  the device has no memory left
    └── DiskFullError     a checkpoint or sample could not be written

Messages say what is wrong, where it came from, and what to do.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from flowloom.printable import printable


class FlowloomError(Exception):
    """The root: the command line prints its message and exits with 2, without a traceback.

    Messages pass `printable`: they hold no credentials, whatever text they were made of.
    """

    def __init__(self, *args: object):
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration."""

    path: str
    """Where, as written in the file or as a flag: `dataloader.batch_size`."""
    message: str
    """What is wrong and what to do, as a sentence."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", printable(self.path))
        object.__setattr__(self, "message", printable(self.message))

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(FlowloomError):
    """The configuration cannot be used; `problems` lists everything wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]):
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{source}: {count}.{lines}")


class DataError(FlowloomError):
    """A data set, one of its files, or too large a share of its rows cannot be used."""


class CacheError(DataError):
    """A cache, or one of its shards, cannot be used."""


class ImageError(DataError):
    """One image cannot be used; the loader skips its row, counts and reports it."""


class SourceError(FlowloomError):
    """A store cannot give or take something; the message holds no key, token or signature."""


class NotFound(SourceError):
    """The store has no such thing."""


class Denied(SourceError):
    """The store does not let us: a wrong key, an expired one, or none."""


class Unavailable(SourceError):
    """The store did not answer as it should; another try may help."""

    def __init__(self, message: str, *, is_busy: bool = False, retry_after_s: float = 0.0):
        super().__init__(message)
        self.is_busy = is_busy
        """Whether it asked to be asked less often (503 SlowDown, 429)."""
        self.retry_after_s = retry_after_s
        """How long it asked to be left alone."""


class WeightsError(FlowloomError):
    """A weights file is missing, unsafe to open, or does not fit the network."""


class RunError(FlowloomError):
    """A run directory cannot be made, read or resumed."""


class TrainingError(FlowloomError):
    """The run went wrong while it was training; its last checkpoint is whole."""


class DivergedError(TrainingError):
    """The loss or the gradient is not a finite number."""


class OutOfMemoryError(TrainingError):
    """The device has no memory left for this configuration."""


class DiskFullError(TrainingError):
    """A checkpoint, sample or event could not be written because the disk is full."""


def is_disk_full(error: OSError) -> bool:
    """Whether the system said that there is no room: on the disk, in the quota, or in the file size limit."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
