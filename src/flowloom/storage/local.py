"""Files in a folder."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flowloom.errors import Denied, ImageError, NotFound, SourceError
from flowloom.files import replacing
from flowloom.image_suffixes import COMMON_SUFFIXES, JXL_SUFFIX, VIDEO_SUFFIXES
from flowloom.storage.base import ObjectInfo, OnState, StorageSection, scheme_of

PARTIAL = ".partial"
"""Suffix of files that are being written; listings leave them out."""


def find_image(folder: Path, filename: str) -> Path:
    """The file in `folder` for `filename`: its .jxl twin, itself, or its stem in another format; of a video,
    only itself.

    Raises:
        ImageError: there is no such file, or the name leads out of the folder.
    """
    is_video = filename.lower().endswith(VIDEO_SUFFIXES)
    suffixes = (None,) if is_video else (JXL_SUFFIX, None, *COMMON_SUFFIXES)
    root = folder.resolve()
    named = root / filename
    if "\\" in filename and not named.exists():  # written on Windows
        named = root / filename.replace("\\", "/")
    try:
        for suffix in suffixes:
            resolved = (named if suffix is None else named.with_suffix(suffix)).resolve()
            if not resolved.is_relative_to(root):
                raise ImageError(f"{filename} leads out of {folder}")
            if resolved.is_file():
                return resolved
    except (ValueError, OSError) as error:  # empty, with a NUL, or too long
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
        with self._translated(name):
            return self._at(name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        with self._translated(name), self._at(name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def read_buffer(self, name: str, start: int, length: int) -> bytes:
        return self.read_range(name, start, length)

    def stat(self, name: str) -> ObjectInfo:
        with self._translated(name):
            return self._object_info(self._at(name))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._translated(prefix):
            start = self._at(prefix) if prefix else self.path
            paths = sorted(path for path in start.rglob("*") if path.is_file() and path.suffix != PARTIAL)
        for path in paths:
            with self._translated(path.name):
                yield self._object_info(path)

    def write(self, name: str, content: bytes | Path) -> None:
        if isinstance(content, Path) and not content.is_file():
            raise SourceError(f"{content}: no such file to write to {self.root}/{name}.")
        with self._translated(name):
            path = self._at(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{secrets.token_hex(8)}{PARTIAL}")
            with replacing(path, partial, permissions=0o600) as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 2**20)

    def delete(self, name: str) -> None:
        with self._translated(name):
            self._at(name).unlink(missing_ok=True)

    def _at(self, name: str) -> Path:
        path = self.path / name
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise SourceError(f"{name} leads out of {self.path}.")
        return path

    def _object_info(self, path: Path) -> ObjectInfo:
        status = path.stat()
        name = path.relative_to(self.path).as_posix()
        modified = datetime.fromtimestamp(status.st_mtime, UTC)
        return ObjectInfo(name, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}", modified)

    @contextmanager
    def _translated(self, name: str) -> Generator[None]:
        """Raise SourceError instead of the system's errors."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"{self.path / name}: no such file.") from None
        except PermissionError as error:
            raise Denied(f"{self.path / name}: {error.strerror}. Change its owner or mode.") from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.path}/{name!r:.200}: {error}") from error
