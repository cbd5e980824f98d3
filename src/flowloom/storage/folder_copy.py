"""Local copies of folders of small files in stores, for programs that read local folders only.

`~/.cache/flowloom/folders/DIGEST/NAME` is the copy, `NAME.files.jsonl` the size and etag of each file in it.
A copy is locked while it is in use, so that an update never changes the files of a running training.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from flowloom.errors import SourceError, Unavailable
from flowloom.files import replacing
from flowloom.locks import try_lock
from flowloom.storage.base import ObjectInfo, Source, StorageSection
from flowloom.storage.downloads.fetch import Watch, check_room
from flowloom.storage.local_copy import PIECE, copies_dir
from flowloom.storage.open import open_named

FILES_AT_ONCE = 16
PASSES = 3
"""Listings that may differ from the copy before the folder counts as one that never stays the same."""
LOCK_PATIENCE_S = 5.0
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True)
class Folder:
    """A folder in a store, and the files of it to copy."""

    url: str
    suffixes: tuple[str, ...]
    """In lower case; other files are not copied."""
    is_deep: bool = False
    """True: with subfolders."""

    @property
    def path(self) -> Path:
        """The folder of the copy, which need not exist."""
        key = json.dumps([self.url.rstrip("/"), self.suffixes, self.is_deep])
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        return copies_dir() / "folders" / digest / self.url.rstrip("/").rpartition("/")[2]

    def infos(self, source: Source) -> dict[str, ObjectInfo]:
        """The objects to copy, by their names below the folder."""
        return {info.name: info for info in source.list() if self._is_wanted(PurePosixPath(info.name))}

    def _is_wanted(self, name: PurePosixPath) -> bool:
        is_inside = not name.is_absolute() and ".." not in name.parts
        return is_inside and (self.is_deep or len(name.parts) == 1) and name.suffix.lower() in self.suffixes


def missing_bytes(folder: Folder, storage: StorageSection) -> int:
    """Bytes that a copy of `folder` would download.

    Raises:
        SourceError: the folder cannot be listed, or has no such file.
    """
    infos = _listed(folder, open_named(folder.url, storage))
    known = _Files(folder.path).read()
    return sum(info.size for name, info in infos.items() if known.get(name) != _identity(info))


def copy_folder(folder: Folder, storage: StorageSection, watch: Watch) -> IO[str]:
    """Make the copy equal to the folder; the result is an open file whose lock keeps it unchanged.

    An interrupted copy continues. Files that the store has no longer are deleted. The MD5 of each file is
    compared with its etag where that is one.

    Raises:
        NotFound, Denied, SourceError: the folder cannot be read, changes all the time, or another process
            uses an older copy.
        DiskFullError: the disk has no room for it.
    """
    source = open_named(folder.url, storage)
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = folder.path.with_name(f"{folder.path.name}.lock").open("a")
    try:
        for _ in range(PASSES):
            while not try_lock(lock, shared=True, patience_s=0.5):
                watch.raise_if_stopped()
            update = _Update(folder, source, watch)
            if not update.is_needed:
                return lock
            fcntl.flock(lock, fcntl.LOCK_UN)
            if try_lock(lock, patience_s=LOCK_PATIENCE_S):
                update.run()
    except BaseException:
        lock.close()
        raise
    is_free = try_lock(lock)
    lock.close()
    if is_free:
        raise Unavailable(f"{source.root}: changes while it is copied. Try again when it stays the same.")
    raise SourceError(
        f"{source.root}: has changed, and another run trains on its copy in {folder.path}. "
        "Wait until that run ends."
    )


_Identity = tuple[int, str | None]


def _identity(info: ObjectInfo) -> _Identity:
    return info.size, info.etag


class _Files:
    """The list of the files in a copy: a line for each, written when the file is complete."""

    def __init__(self, folder: Path):
        self.path = folder.with_name(f"{folder.name}.files.jsonl")

    def read(self) -> dict[str, _Identity]:
        """The last size and etag of each file; a torn last line is ignored."""
        found: dict[str, _Identity] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):
                    name, size, etag = json.loads(line)
                    found[name] = size, etag
        return found

    def write(self, files: dict[str, _Identity]) -> None:
        """Replace the list."""
        with replacing(self.path) as file:
            file.writelines(_line(name, identity) for name, identity in sorted(files.items()))


def _line(name: str, identity: _Identity) -> bytes:
    return json.dumps([name, *identity]).encode() + b"\n"


def _listed(folder: Folder, source: Source) -> dict[str, ObjectInfo]:
    infos = folder.infos(source)
    if not infos:
        kinds = ", ".join(folder.suffixes)
        raise SourceError(f"{source.root}: has no file that ends in {kinds}. Check the address.")
    return infos


class _Update:
    """The difference between a folder and its copy."""

    def __init__(self, folder: Folder, source: Source, watch: Watch):
        self.folder, self.source, self.watch = folder, source, watch
        self.files = _Files(folder.path)
        self.infos, self.known = _listed(folder, source), self.files.read()
        self.missing = [info for name, info in self.infos.items() if not self._is_here(name, info)]
        self.gone = self.known.keys() - self.infos.keys()
        self._encodings: list[Path] = []

    @property
    def is_needed(self) -> bool:
        return bool(self.missing or self.gone)

    def _is_here(self, name: str, info: ObjectInfo) -> bool:
        return self.known.get(name) == _identity(info) and (self.folder.path / name).is_file()

    def run(self) -> None:
        """Delete files that are gone, and download those that are missing."""
        self._encodings = [*self.folder.path.rglob("*.npz")]
        for name in self.gone:
            self._forget(name)
        kept = self.known.keys() & self.infos.keys()
        self.files.write({name: self.known[name] for name in kept if (self.folder.path / name).is_file()})
        total, done = sum(info.size for info in self.missing), 0
        check_room(self.folder.path / "x", total)
        self.watch.on_phase(f"copying {len(self.missing):,} files of {self.source.root}")
        # Appended after the names of complete files, so that the list never has one that is not.
        with (
            self.files.path.open("ab") as file,
            ThreadPoolExecutor(FILES_AT_ONCE) as pool,
            closing(self._copied(pool)) as copied,
        ):
            for info in copied:
                file.write(_line(info.name, _identity(info)))
                done += info.size
                self.watch.on_bytes(done, total)

    def _copied(self, pool: ThreadPoolExecutor) -> Generator[ObjectInfo]:
        """The objects, as they are copied, in order."""
        for start in range(0, len(self.missing), FILES_AT_ONCE):
            self.watch.raise_if_stopped()
            yield from pool.map(self._copy, self.missing[start : start + FILES_AT_ONCE])

    def _copy(self, info: ObjectInfo) -> ObjectInfo:
        path = self.folder.path / info.name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._forget(info.name)
        with replacing(path, path.with_name(f".{path.name}.part"), is_durable=False) as file:
            digest = self._pour(info, file.write)
        expected = _MD5.fullmatch(info.etag or "")
        # The etag of an object that the store encrypts is no MD5: then a second read has the same bytes.
        if expected and digest != expected[1] and self._pour(info, lambda _: None) != digest:
            path.unlink()
            raise Unavailable(f"{self.source.root}/{info.name}: two reads differ. Try again.")
        return info

    def _pour(self, info: ObjectInfo, write: Callable[[bytes], object]) -> str:
        """Read the object; returns its MD5."""
        digest, size = hashlib.md5(usedforsecurity=False), 0
        for start in range(0, info.size, PIECE):
            piece = bytes(self.source.read_buffer(info.name, start, PIECE))
            digest.update(piece)
            write(piece)
            size += len(piece)
        if size != info.size:
            raise Unavailable(f"{self.source.root}/{info.name}: received {size:,} of {info.size:,} bytes.")
        return digest.hexdigest()

    def _forget(self, name: str) -> None:
        """Delete a file and the encodings that another program cached beside it."""
        path = self.folder.path / name
        path.unlink(missing_ok=True)
        starts = (f"{path.stem}.", f"{path.stem}_")  # fox_0512x0768_lumina.npz is of fox.png
        for each in self._encodings:
            if each.parent == path.parent and each.name.startswith(starts):
                each.unlink(missing_ok=True)
