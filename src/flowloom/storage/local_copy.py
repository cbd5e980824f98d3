"""Local copies of models in stores: one function from a path or a URL to a file on this machine.

`~/.cache/flowloom/copies/DIGEST/NAME` is the copy of one URL, shared by all runs; `NAME.note.json` has its
size, etag and SHA-256. A copy is used as long as the store reports its etag.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from typing_extensions import Buffer

from flowloom.errors import NotFound, SourceError, Unavailable, size_text
from flowloom.files import sync, write_json
from flowloom.locks import try_lock
from flowloom.models.header import SAFE
from flowloom.printable import printable
from flowloom.storage.base import ObjectInfo, Source, StorageSection, scheme_of
from flowloom.storage.downloads.fetch import Watch, check_room, sha256_of
from flowloom.storage.open import open_named

PIECE, PIECES_AT_ONCE = 2**24, 4
SMALL = 2**24
"""Files up to this size are copied even where headers are enough: configurations and vocabularies."""
SILENT = Watch(lambda _done, _total: None, lambda: None)
SECONDS_BETWEEN_PHASES = 10.0


def watch_as_phases(emit: Callable[..., None], raise_if_stopped: Callable[[], None]) -> Watch:
    """Downloads as phases of a run; `emit` writes an event of a kind with fields."""
    name, shown_at = "", 0.0

    def begin(phase: str) -> None:
        nonlocal name
        name = phase
        emit("phase", name=phase)

    def progress(done: int, total: int | None) -> None:
        nonlocal shown_at
        if total and time.monotonic() - shown_at > SECONDS_BETWEEN_PHASES:
            shown_at = time.monotonic()
            emit("phase", name=f"{name}: {done / total:.0%} of {size_text(total)}")

    def warn(message: str) -> None:
        emit("warning", message=message)

    return Watch(progress, raise_if_stopped, begin, warn)


def is_url(address: str) -> bool:
    """True if `address` is in a store or on a web server."""
    return scheme_of(address) in ("s3", "gs", "az", "http", "https")


def local_copy(address: str, storage: StorageSection, watch: Watch = SILENT) -> Path:
    """The file or folder at `address`, a path or a URL; that of a URL is downloaded unless it is here.

    Raises:
        NotFound, Denied, SourceError: it cannot be downloaded.
        DiskFullError: the disk has no room for it.
    """
    return _copied(address, storage, watch, "copies", _download)


def missing_bytes(address: str, storage: StorageSection) -> int:
    """Bytes that `local_copy` of the URL `address` would download, without parts of interrupted downloads.

    Raises:
        NotFound, Denied, SourceError: it cannot be read.
    """
    parent, _, name = address.rstrip("/").rpartition("/")
    target = copy_path(address)
    return sum(
        info.size
        for info in _found(open_named(parent, storage), name)
        if not _is_copy(info, target / PurePosixPath(info.name).relative_to(name))
    )


def header_copy(address: str, storage: StorageSection) -> Path:
    """A stand-in for `local_copy` of which only headers can be read, without a download of the weights.

    Files of safetensors have their full size, with nothing behind their headers. Weights in other formats are
    copied whole.

    Raises:
        NotFound, Denied, SourceError: it cannot be read.
    """
    return _copied(address, storage, SILENT, "headers", _header)


_Get = Callable[[Source, ObjectInfo, Path, Watch], None]


def _copied(address: str, storage: StorageSection, watch: Watch, kind: str, get: _Get) -> Path:
    if not is_url(address):
        return Path(address)
    parent, _, name = address.rstrip("/").rpartition("/")
    # Not a private web server, unless the environment allows it: a client of the studio may write the URL.
    source = open_named(parent, storage)
    target = _place(address, kind)
    try:
        infos = _found(source, name)
    except Unavailable as error:
        if kind == "copies" and _Note.read(target) and target.exists():
            watch.warn(f"{error} The copy from an earlier run is used.")
            return target
        raise
    for info in infos:
        within = PurePosixPath(info.name).relative_to(name)
        _refresh(source, info, target / within, watch, get)
    return target


def copy_path(address: str) -> Path:
    """The path of the copy of the file or folder at the URL `address`, which need not exist."""
    return _place(address, "copies")


def _place(address: str, kind: str) -> Path:
    name = address.rstrip("/").rpartition("/")[2].partition("?")[0]
    digest = hashlib.blake2b(address.rstrip("/").encode(), digest_size=8).hexdigest()
    return copies_dir() / kind / digest / name


def copies_dir() -> Path:
    """The folder of all copies, which may be deleted while no run starts."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "flowloom"


def _found(source: Source, name: str) -> list[ObjectInfo]:
    """The object `name`, or the objects of the folder of this name.

    Raises:
        NotFound: there are none.
    """
    try:
        return [source.stat(name)]
    except NotFound as error:
        if scheme_of(source.root).startswith("http"):
            raise
        infos = [info for info in source.list(name) if ".." not in PurePosixPath(info.name).parts]
        if not infos:
            raise NotFound(f"{error} Nothing is below it either.") from error
        return infos


@dataclass(frozen=True)
class _Note:
    """The object that a copy was made of."""

    size: int
    etag: str | None
    sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> _Note | None:
        try:
            return cls(**json.loads(_beside(path, "note.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _refresh(source: Source, info: ObjectInfo, path: Path, watch: Watch, get: _Get) -> None:
    """Download the object of `info` to `path`, unless that is its copy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path, watch):
        if not _is_copy(info, path):
            get(source, info, path, watch)


def _is_copy(info: ObjectInfo, path: Path) -> bool:
    """True if the file at `path` is the copy of the object of `info`."""
    note = _Note.read(path)
    return note is not None and (note.size, note.etag) == (info.size, info.etag) and path.is_file()


@contextmanager
def _alone(path: Path, watch: Watch) -> Generator[None]:
    """Wait while another process downloads the same file."""
    with _beside(path, "lock").open("a") as file:
        while not try_lock(file, patience_s=0.5):
            watch.raise_if_stopped()
        yield


def _download(source: Source, info: ObjectInfo, path: Path, watch: Watch) -> None:
    """Continue or begin the download, and rename the file when it is complete."""
    part, noted = _beside(path, "part"), _beside(path, "part.json")
    of = json.dumps([info.size, info.etag])
    if info.etag is None or not noted.is_file() or noted.read_text() != of:
        part.unlink(missing_ok=True)
        noted.write_text(of)
    with part.open("ab") as file, ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        check_room(path, info.size - file.tell())
        watch.on_phase(f"downloading {printable(info.name)}")
        while (have := file.tell()) < info.size:
            watch.raise_if_stopped()
            starts = range(have, min(info.size, have + PIECES_AT_ONCE * PIECE), PIECE)
            for piece in pool.map(partial(_piece, source, info.name), starts):
                file.write(piece)
            if file.tell() == have:
                raise SourceError(f"{source.root}/{info.name}: shorter than {info.size:,} bytes.")
            watch.on_bytes(file.tell(), info.size)
        file.flush()
        os.fsync(file.fileno())
    now = source.stat(info.name)
    if part.stat().st_size != info.size or (now.size, now.etag) != (info.size, info.etag):
        part.unlink()
        raise Unavailable(f"{source.root}/{info.name}: changed while it was downloaded. Try again.")
    sha256 = sha256_of(part, SILENT)
    part.replace(path)
    sync(path.parent)
    noted.unlink()
    _write_note(path, info, sha256)


def _piece(source: Source, name: str, start: int) -> Buffer:
    return source.read_buffer(name, start, PIECE)


def _header(source: Source, info: ObjectInfo, path: Path, watch: Watch) -> None:
    if info.size <= SMALL or path.suffix not in SAFE:
        return _download(source, info, path, watch)
    length = int.from_bytes(source.read_range(info.name, 0, 8), "little")
    content = source.read_range(info.name, 0, min(info.size, 8 + min(length, 2**25)))
    with path.open("wb") as file:
        file.write(content)
        file.truncate(info.size)
    _write_note(path, info, "")
    return None


def _write_note(path: Path, info: ObjectInfo, sha256: str) -> None:
    write_json(_beside(path, "note.json"), {"size": info.size, "etag": info.etag, "sha256": sha256})
