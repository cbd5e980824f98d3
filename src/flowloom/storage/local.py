"""Files in a folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flowloom.errors import Denied, ImageError, NotFound, SourceError
from flowloom.storage.base import Entry, OnState, StorageSection, scheme_of

TWIN = ".jxl"
"""FLOW: a JPEG XL of the same name wins over the file itself."""
OTHER_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PARTIAL = ".partial"
"""How files that are being written end; listings leave them out."""


def find_image(folder: Path, filename: str) -> Path:
    """The file that `filename` means below `folder`: its .jxl twin, itself, or another format of its name.

    Raises:
        ImageError: there is none, or the name leads out of the folder.
    """
    root = folder.resolve()
    named = root / filename
    if "\\" in filename and not named.exists():  # written on Windows
        named = root / filename.replace("\\", "/")
    try:
        for path in (named.with_suffix(TWIN), named, *(named.with_suffix(s) for s in OTHER_SUFFIXES)):
            resolved = path.resolve()
            if not resolved.is_relative_to(root):
                raise ImageError(f"{filename} leads out of {folder}")
            if resolved.is_file():
                return resolved
    except (ValueError, OSError) as error:  # no name at all, a NUL in it, longer than names may be
        raise ImageError(f"{filename!r:.200} is not a file name: {error}") from error
    raise ImageError(f"no such file in {folder}")


def open_store(url: str, storage: StorageSection, on_state: OnState) -> Folder:  # noqa: ARG001
    """The folder at `url`, a path or `file:///path`."""
    return Folder(Path(unquote(urlsplit(url).path)) if scheme_of(url) else Path(url))


class Folder:
    """A `Source` of the files below a folder."""

    def __init__(self, path: Path):
        self.path = path
        self.root = str(path)

    def read(self, name: str) -> bytes:
        with self._told(name):
            return self._at(name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self._told(name), self._at(name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def read_buffer(self, name: str, start: int, length: int) -> bytes:
        return self.read_range(name, start, length)

    def stat(self, name: str) -> Entry:
        with self._told(name):
            return self._entry(self._at(name))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        with self._told(prefix):
            start = self._at(prefix) if prefix else self.path
            paths = sorted(path for path in start.rglob("*") if path.is_file() and path.suffix != PARTIAL)
        for path in paths:
            with self._told(path.name):
                yield self._entry(path)

    def write(self, name: str, content: bytes | Path) -> None:
        if isinstance(content, Path) and not content.is_file():
            raise SourceError(f"{content}: no such file to write to {self.root}/{name}.")
        with self._told(name):
            path = self._at(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            number, partial = tempfile.mkstemp(suffix=PARTIAL, dir=path.parent)
            try:
                with os.fdopen(number, "wb") as file:
                    if isinstance(content, bytes):
                        file.write(content)
                    else:
                        with content.open("rb") as given:
                            shutil.copyfileobj(given, file, 2**20)
                    file.flush()
                    os.fsync(file.fileno())
                Path(partial).replace(path)
            finally:
                Path(partial).unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        with self._told(name):
            self._at(name).unlink(missing_ok=True)

    def _at(self, name: str) -> Path:
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise SourceError(f"{name} leads out of {self.path}.")
        return path

    def _entry(self, path: Path) -> Entry:
        status = path.stat()
        name = path.relative_to(self.path).as_posix()
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        return Entry(name, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}", modified)

    @contextmanager
    def _told(self, name: str) -> Generator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self.path / name}: no such file.") from None
        except PermissionError as error:
            raise Denied(f"{self.path / name}: {error.strerror}. Change its owner or mode.") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path}/{name!r:.200}: {error}") from error
