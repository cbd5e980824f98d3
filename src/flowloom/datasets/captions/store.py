"""The interface of caption stores, and how a file is replaced."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from flowloom.datasets.captions.formats import Caption
from flowloom.errors import DataError

BATCH_SIZE = 500
"""Changes written or reported together."""


class CaptionError(DataError):
    """A caption cannot be read or edited; nothing was changed."""

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


class OutsideFolder(CaptionError):
    """A caption file is not below the folder of its dataset."""


class CaptionRef(NamedTuple):
    """The place of one caption."""

    item: str
    """The image: its path below the folder, its URL, or the number of its row."""
    place: str
    """The caption file below the folder, or the number of the line."""


class Change(NamedTuple):
    """The content of one place before and after: of the caption file, or of the line."""

    item: str
    place: str
    before: bytes | None
    """None: the file does not exist."""
    after: bytes | None

    @property
    def ref(self) -> CaptionRef:
        """Where it is."""
        return CaptionRef(self.item, self.place)


@dataclass
class Written:
    """The result of `CaptionStore.write`."""

    num_written: int = 0
    changed_meanwhile: list[CaptionRef] = field(default_factory=list)
    """Not written, because another program changed the caption."""


class CaptionStore(Protocol):
    """The captions of a dataset, by place. Reading is safe in several threads."""

    def read(self, place: str) -> bytes | None:
        """The content of a place; None if it does not exist.

        Raises:
            CaptionError: it cannot be read.
        """
        ...

    def caption(self, place: str, data: bytes | None) -> Caption:
        """The caption in the content of a place."""
        ...

    def edited(
        self, place: str, data: bytes | None, captions: list[str], is_tags: bool | None = None
    ) -> bytes | None:
        """`data` with other captions; None: no file is needed.

        Raises:
            CaptionError: it cannot hold a caption.
        """
        ...

    def is_same(self, data: bytes | None, other: bytes | None) -> bool:
        """True if both say the same of the same image."""
        ...

    def rebased(self, change: Change, data: bytes | None) -> Change | None:
        """`change` for a place that contains `data` now; None if the caption is not `change.before`."""
        ...

    def write(
        self, changes: Iterable[Change], on_written: Callable[[list[Change]], None] = lambda _: None
    ) -> Written:
        """Replace `before` by `after` in every place that still contains `before`.

        Args:
            changes: of a JSONL, in the order of its lines.
            on_written: gets the changes as they were written, in batches.

        Raises:
            OSError, SourceError: a file cannot be written.
            CaptionError: another program writes the JSONL; it is as that program left it.
        """
        ...

    def require_access(self) -> None:
        """Check that captions can be written, before work that would be lost.

        Raises:
            CaptionError: they cannot.
        """
        ...

    def order(self, place: str) -> int:
        """Sort key of the places for `write`."""
        ...

    def label(self, place: str) -> str:
        """The place as messages name it."""
        ...

    def close(self) -> None:
        """Close its files."""
        ...


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """A file whose content becomes that of `path` at the end, as a whole or not at all.

    Its name is the same in every process, so that the next writer removes what a killed one left; it is
    locked, so that two writers never mix.

    Raises:
        CaptionError: another process is writing `path`.
        OSError: it cannot be written.
    """
    digest = hashlib.blake2b(os.fsencode(path.name), digest_size=8).hexdigest()
    partial = path.with_name(f".{digest}.tmp")
    with partial.open("ab") as file:
        if not _is_ours(file, partial):
            raise busy(path)
        try:
            file.truncate(0)
            yield file
            file.flush()
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def busy(path: Path) -> CaptionError:
    """The error for a file that another process writes at the same time."""
    return CaptionError(
        f"{path.name} was just written by another program, such as a tagging run.",
        "Nothing was changed. Wait for the other program, then try again.",
    )


def _is_ours(file: BinaryIO, partial: Path) -> bool:
    """Lock `file`; False if another process has it, or just moved it to its target."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), partial.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks
        return True
