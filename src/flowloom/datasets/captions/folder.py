"""Captions in files beside the images of a folder."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from flowloom.datasets.captions.formats import NO_CAPTION, SUFFIXES, Caption, edited_file, parse_file
from flowloom.datasets.captions.store import (
    BATCH_SIZE,
    CaptionError,
    Change,
    OutsideFolder,
    Written,
    replacing,
)

THREADS = 8
"""Writing many small files is mostly waiting for the disk."""


class FolderCaptions:
    """A `CaptionStore`; places are paths of caption files below the folder."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...] = SUFFIXES):
        """
        Args:
            suffixes: of files that may be written.
        """
        self.folder = folder.resolve()
        self.suffixes = suffixes
        self._folders: dict[str, Path] = {}
        """Checked to be below the folder."""

    def read(self, place: str) -> bytes | None:
        """The content of the file; None if it does not exist.

        Raises:
            OutsideFolder: it is not below the folder.
            CaptionError: it cannot be read.
        """
        path = self._path(place)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return self._read_link(place, path)
            raise CaptionError(f"{place}: {error.strerror}.", "Check the permissions of the file.") from None

    def _read_link(self, place: str, path: Path) -> bytes:
        try:
            target = path.resolve(strict=True)
            if target.is_relative_to(self.folder):
                return target.read_bytes()
        except (OSError, RuntimeError) as error:
            raise CaptionError(f"{place} is a broken link.", "Remove it.") from error
        raise OutsideFolder(f"{place} leads out of {self.folder}")

    def _path(self, place: str) -> Path:
        folder, _, name = place.rpartition("/")
        if folder not in self._folders:
            real = (self.folder / folder).resolve()
            if not real.is_relative_to(self.folder):
                raise OutsideFolder(f"{place} leads out of {self.folder}")
            self._folders[folder] = real
        return self._folders[folder] / name

    def caption(self, place: str, data: bytes | None) -> Caption:
        """The caption in the content of the file."""
        return NO_CAPTION if data is None else parse_file(Path(place).name, data)

    def edited(
        self,
        place: str,
        data: bytes | None,
        captions: list[str],
        is_tags: bool | None = None,  # noqa: ARG002
    ) -> bytes | None:
        """The file with other captions; None: no file is needed."""
        return edited_file(place, data, captions)

    def is_same(self, data: bytes | None, other: bytes | None) -> bool:
        """True if both are the same bytes."""
        return data == other

    def rebased(self, change: Change, data: bytes | None) -> Change | None:
        """`change` if the file contains `change.before`."""
        return change if data == change.before else None

    def write(
        self, changes: Iterable[Change], on_written: Callable[[list[Change]], None] = lambda _: None
    ) -> Written:
        """Replace the files that still contain `before`, each as a whole or not at all.

        Raises:
            OSError: a file cannot be written.
            CaptionError: a place is not a caption file.
        """
        written = Written()
        remaining = iter(changes)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="captions") as pool:
            while batch := list(islice(remaining, BATCH_SIZE)):
                done = list[Change]()
                for change, is_done in zip(batch, pool.map(self._replace, batch), strict=True):
                    if is_done:
                        done.append(change)
                    else:
                        written.changed_meanwhile.append(change.ref)
                written.num_written += len(done)
                on_written(done)
        return written

    def _replace(self, change: Change) -> bool:
        path = self._path(change.place)
        if path.suffix not in self.suffixes:
            raise CaptionError(f"{path} is not a {' or '.join(self.suffixes)} file: it was not changed.")
        if self.read(change.place) != change.before:
            return False
        if change.after is None:
            path.unlink(missing_ok=True)
        else:
            with replacing(path) as file:
                file.write(change.after)
        return True

    def order(self, place: str) -> int:  # noqa: ARG002
        """0: any order will do."""
        return 0

    def label(self, place: str) -> str:
        """The path below the folder."""
        return place

    def close(self) -> None:
        """Nothing is held open."""


def caption_place(item: str, suffix: str, *, is_only: bool) -> str:
    """Where a new caption of `item` goes: `a.txt` for `a.png`; `a.png.txt` if several images are called `a`.

    Args:
        is_only: no other image of the folder has the same stem.
    """
    stem, dot, _ = item.rpartition(".")
    return (stem if dot and is_only else item) + suffix
