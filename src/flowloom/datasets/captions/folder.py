"""Captions in files beside the images of a folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from flowloom.datasets.captions.files import CaptionFiles
from flowloom.datasets.captions.formats import SUFFIXES
from flowloom.datasets.captions.store import CaptionError, Change, OutsideFolder, replacing


class FolderCaptions(CaptionFiles):
    """A `CaptionStore`; places are paths of caption files below the folder."""

    def __init__(self, folder: Path, suffixes: tuple[str, ...] = SUFFIXES):
        """
        Args:
            suffixes: of files that may be written.
        """
        super().__init__(suffixes)
        self.folder = folder.resolve()
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

    def replace(self, change: Change) -> bool:
        """Make `change`.

        Raises:
            OSError: the file cannot be written.
        """
        path = self._path(change.place)
        if self.read(change.place) != change.before:
            return False
        if change.after is None:
            path.unlink(missing_ok=True)
        else:
            with replacing(path) as file:
                file.write(change.after)
        return True
