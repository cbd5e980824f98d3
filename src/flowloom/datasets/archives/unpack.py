"""Unpack zip and tar archives of images into a folder.

All entries are unpacked to a staging folder, then moved into the dataset. Names that lead out of the folder,
links, nested archives, and files that are not images or texts are left out and reported. An archive that
unpacks to a multiple of its size (a bomb) is refused before or while it is unpacked.
"""

from __future__ import annotations

import filecmp
import lzma
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from flowloom.datasets.archives.names import UnsafeName, move_if_free, prepare_path, safe_name
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.tars import open_tar
from flowloom.image_suffixes import IMAGE_SUFFIXES

MAX_ENTRIES = 1_000_000
MAX_RATIO = 100
"""Limit of unpacked size to archive size; images rarely exceed 2."""
HARMLESS_BYTES = 64 * 2**20
"""Smaller contents may have any ratio."""
SPARE_BYTES = 2**29
"""Space that is left free on the disk."""
MAX_LISTED = 1000
LOCAL_HEADER_BYTES = 30
"""Minimum size of the header before the content of each entry."""
END_BYTES = 2**16 + 22 + 20
"""Size of the end of a zip: its last record with the longest comment, and the locator of zip64."""
MAX_DIRECTORY_BYTES = 2**28
"""Limit of the list of entries; a million have 100 MB."""
CHUNK = 2**20
UTF8_FLAG, ENCRYPTED_FLAG = 0x800, 0x1
UNICODE_PATH = 0x7075
"""ID of the extra field with the name in UTF-8."""


_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    ValueError,
    RuntimeError,
)


class ArchiveRefused(Exception):
    """The reason why an archive is not unpacked, or not to its end."""


@dataclass
class UnpackReport:
    """The result of unpacking an archive."""

    state: str = "unpacking"
    num_done: int = 0
    num_entries: int = 0
    num_files: int = 0
    """Files that are in the dataset now."""
    num_images: int = 0
    num_left_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Number of entries that were left out, by reason."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of the first thousand."""
    error: str = ""

    def leave_out(self, name: str, reason: str) -> None:
        """Record an entry that did not become a file."""
        self.num_left_out += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.left_out) < MAX_LISTED:
            self.left_out.append((name.encode("utf-8", "backslashreplace").decode(), reason))


@dataclass(frozen=True)
class UnpackRequest:
    """An archive and its target."""

    archive: Path
    staging: Path
    """Emptied first; on the same disk as `folder`."""
    folder: Path
    replaces: bool
    """True: existing files of the same names are replaced."""
    encoding: str = ""
    """Encoding of names that are not marked as UTF-8."""


@dataclass(frozen=True)
class _ArchiveEntry:
    name: str
    size: int
    packed_size: int | None
    """Bytes in the archive; None if the archive is compressed as a whole."""
    fault: str
    """The reason to leave it out, independent of its name."""
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Limits:
    archive_size: int
    free: int

    def require(self, total: int) -> None:
        """Raise ArchiveRefused if `total` bytes are too many."""
        if total > max(HARMLESS_BYTES, MAX_RATIO * self.archive_size):
            raise ArchiveRefused(
                f"{self.archive_size:,} bytes would become {total:,}: this is a bomb, not images"
            )
        if total > self.free:
            raise ArchiveRefused(
                f"it needs {total:,} bytes, but only {max(self.free, 0):,} are free on the disk"
            )


def unpack(request: UnpackRequest, on_progress: Callable[[UnpackReport], None]) -> UnpackReport:
    """Unpack the zip or tar of `request`.

    Raises:
        ArchiveRefused: it is damaged, encrypted, a bomb, or too large for the disk; the dataset is unchanged.
        OSError: a file cannot be written.
    """
    done = UnpackReport()
    shutil.rmtree(request.staging, ignore_errors=True)
    request.staging.mkdir()
    limits = _Limits(request.archive.stat().st_size, shutil.disk_usage(request.staging).free - SPARE_BYTES)
    try:
        if zipfile.is_zipfile(request.archive):
            check_directory(request.archive)
            with zipfile.ZipFile(request.archive) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                _check(entries, limits)
                done.num_entries = len(entries)
                names = _extract(
                    _zip_entries(archive, entries, request.encoding), limits, request, done, on_progress
                )
        else:
            # As a stream: listing a compressed tar would unpack all of it.
            with open_tar(request.archive, "r|*", request.encoding or "utf-8") as archive:
                names = _extract(_tar_entries(archive), limits, request, done, on_progress)
    except _DAMAGED as error:
        raise ArchiveRefused(f"the archive is damaged or has an unknown format: {error}") from error
    except MemoryError:
        raise ArchiveRefused("its list of names needs too much memory") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # bz2 reports damage like this.
        raise ArchiveRefused(f"the archive is damaged: {error}") from error
    _move_in(names, request, done)
    return done


def _check(entries: list[zipfile.ZipInfo], limits: _Limits) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ArchiveRefused(f"it has {len(entries):,} entries; the limit is {MAX_ENTRIES:,}")
    if any(entry.flag_bits & ENCRYPTED_FLAG for entry in entries):
        raise ArchiveRefused("it is encrypted: create it without a password")
    _check_overlaps(entries)
    limits.require(sum(entry.file_size for entry in entries))


def _check_overlaps(entries: list[zipfile.ZipInfo]) -> None:
    """Raise ArchiveRefused if entries share bytes of the archive, as in a bomb that repeats one content."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise ArchiveRefused("its entries overlap: this is a bomb, not images")
        end = entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size


def check_directory(path: Path) -> None:
    """Check the length of a zip's list of entries before it is read into memory.

    Raises:
        ArchiveRefused: it is too long.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_BYTES))
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0:
            return  # zipfile reports the problem
        count, size = struct.unpack_from("<HI", tail, end + 10) if len(tail) >= end + 16 else (0, 0)
        locator = tail.rfind(b"PK\x06\x07", 0, end)
        if locator >= 0:
            (offset,) = struct.unpack_from("<Q", tail, locator + 8)
            file.seek(min(offset, 2**62))
            record = file.read(56)
            if record.startswith(b"PK\x06\x06") and len(record) == 56:
                count, size = struct.unpack_from("<QQ", record, 32)
    if count > MAX_ENTRIES:
        raise ArchiveRefused(f"it has {count:,} entries; the limit is {MAX_ENTRIES:,}")
    if size > MAX_DIRECTORY_BYTES:
        raise ArchiveRefused(f"its list of entries has {size:,} bytes; the limit is {MAX_DIRECTORY_BYTES:,}")


def _zip_entries(
    archive: zipfile.ZipFile, entries: Iterable[zipfile.ZipInfo], encoding: str
) -> Iterator[_ArchiveEntry]:
    for entry in entries:
        fault = "it is a link" if stat.S_ISLNK(entry.external_attr >> 16) else ""
        name = _name_of(entry, encoding)
        yield _ArchiveEntry(name, entry.file_size, entry.compress_size, fault, partial(archive.open, entry))


def _tar_entries(archive: tarfile.TarFile) -> Iterator[_ArchiveEntry]:
    for member in archive:
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue] -- or it keeps every header
        if member.isdir():
            continue
        is_link = member.issym() or member.islnk()
        fault = "" if member.isreg() else "it is a link" if is_link else "it is not a regular file"

        def open_member(member: tarfile.TarInfo = member) -> IO[bytes]:
            file = archive.extractfile(member)
            assert file, "a regular file can be read"
            return file

        yield _ArchiveEntry(member.name, member.size, None, fault, open_member)


def _extract(
    entries: Iterable[_ArchiveEntry],
    limits: _Limits,
    request: UnpackRequest,
    done: UnpackReport,
    on_progress: Callable[[UnpackReport], None],
) -> list[str]:
    """Unpack to the staging folder; the names of the files there."""
    names: list[str] = []
    taken: set[str] = set()
    folders: set[str] = set()
    total = 0
    for entry in entries:
        done.num_done += 1
        on_progress(done)
        if entry.size < 0:
            raise ArchiveRefused(f"the archive is damaged: {entry.name} has {entry.size} bytes")
        total += entry.size
        limits.require(total)
        if done.num_done > MAX_ENTRIES:
            raise ArchiveRefused(f"it has more than {MAX_ENTRIES:,} entries")
        try:
            name = _claim_name(entry, taken, folders)
            target = prepare_path(request.staging, name)
        except UnsafeName as error:
            done.leave_out(entry.name, str(error))
            continue
        except (FileExistsError, NotADirectoryError):
            done.leave_out(entry.name, "a file and a folder have the same name")
            continue
        with entry.open() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        names.append(name)
    return names


def _claim_name(entry: _ArchiveEntry, taken: set[str], folders: set[str]) -> str:
    """The name of `entry` as a path below the dataset, added to `taken`.

    Raises:
        UnsafeName: it is left out.
        ArchiveRefused: it is a bomb.
    """
    name = safe_name(entry.name)
    if entry.fault:
        raise UnsafeName(entry.fault)
    key = unicodedata.normalize("NFC", name).casefold()
    if key in taken:
        raise UnsafeName("an earlier entry has the same name")
    parents = {key[:i] for i, letter in enumerate(key) if letter == "/"}
    if key in folders or parents & taken:
        raise UnsafeName("a file and a folder have the same name")
    taken.add(key)
    folders |= parents
    if entry.packed_size is not None and entry.size > max(HARMLESS_BYTES, MAX_RATIO * entry.packed_size):
        raise ArchiveRefused(f"{entry.name} would become {entry.size:,} bytes: this is a bomb, not an image")
    return name


def _name_of(entry: zipfile.ZipInfo, encoding: str) -> str:
    """The decoded name; many programs write UTF-8 without marking it."""
    if entry.flag_bits & UTF8_FLAG:
        return entry.filename
    stored = entry.orig_filename.encode("cp437", "surrogateescape")
    for raw in (_unicode_path(entry.extra, stored), stored):
        for codec in ("utf-8", encoding):
            with suppress(UnicodeDecodeError, LookupError):
                if raw is not None and codec:
                    return raw.decode(codec)
    return entry.filename


def _unicode_path(extra: bytes, stored: bytes) -> bytes | None:
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and int.from_bytes(content[1:5], "little") == zlib.crc32(stored):
            return content[5:]
    return None


def _move_in(names: list[str], request: UnpackRequest, done: UnpackReport) -> None:
    """Move all files into the dataset."""
    for name in names:
        source = request.staging / name
        try:
            target = prepare_path(request.folder, name)
            if request.replaces and not target.is_dir():
                source.replace(target)
            elif not move_if_free(source, target) and not _is_same(source, target):
                done.leave_out(name, "another file of this name exists")
                continue
        except (FileExistsError, NotADirectoryError, UnsafeName):
            done.leave_out(name, "a file or a link is in the way")
            continue
        done.num_files += 1
        done.num_images += split_suffix(name)[1] in IMAGE_SUFFIXES


def _is_same(source: Path, target: Path) -> bool:
    """True if an earlier attempt moved it there."""
    return target.is_file() and filecmp.cmp(source, target, shallow=False)
