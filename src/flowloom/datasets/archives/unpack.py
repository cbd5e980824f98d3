"""Archives of pictures, zip and tar, unpacked into a folder.

Every entry goes to a folder beside the archive, and when all of them are there, into the data set; names that
lead out, links, nested archives and what is neither picture nor text are left out and told. What unpacks to
much more than it is (a bomb) is refused before, or stopped while, it is unpacked.
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

from flowloom.datasets.archives.names import Unfit, fit, move_new, place_for
from flowloom.datasets.build.items import PICTURES
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.tars import open_tar

MAX_ENTRIES = 1_000_000
MAX_RATIO = 100
"""Of what is unpacked to the archive: pictures are hardly ever 2."""
HARMLESS_BYTES = 64 * 2**20
"""Below this, no ratio is a bomb."""
SPARE_BYTES = 2**29
"""Left free on the disk."""
LISTED = 1000
LOCAL_HEADER_BYTES = 30
"""Before the content of each entry, at least."""
END_BYTES = 2**16 + 22 + 20
"""At the end of a zip: its last record with the longest comment, and where the one of large zips lies."""
MAX_DIRECTORY_BYTES = 2**28
"""Of the list of entries; a million have 100 MB."""
CHUNK = 2**20
UTF8_FLAG, ENCRYPTED_FLAG = 0x800, 0x1
UNICODE_PATH = 0x7075
"""Extra field of an entry: its name in UTF-8."""


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


class Refused(Exception):
    """Why an archive is not unpacked, or no further."""


@dataclass
class Unpacked:
    """What became of an archive."""

    state: str = "unpacking"
    num_done: int = 0
    num_entries: int = 0
    num_files: int = 0
    """That are in the data set now."""
    num_images: int = 0
    num_left_out: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """How many were left out for each reason."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the first thousand."""
    error: str = ""

    def leave_out(self, name: str, reason: str) -> None:
        """Tell of one that did not become a file."""
        self.num_left_out += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if len(self.left_out) < LISTED:
            self.left_out.append((name.encode("utf-8", "backslashreplace").decode(), reason))


@dataclass(frozen=True)
class Unpacking:
    """One archive and where it goes."""

    archive: Path
    staging: Path
    """Made anew; on the disk of `folder`."""
    folder: Path
    replaces: bool
    """Whether files of the same names are replaced, or stay."""
    encoding: str = ""
    """Of names that are not marked as UTF-8."""


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    packed: int | None
    """Bytes in the archive; None where only the whole of it is packed."""
    fault: str
    """Why it is left out, whatever its name."""
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class _Room:
    packed: int
    free: int

    def require(self, total: int) -> None:
        """Raises Refused where `total` bytes are too many."""
        if total > max(HARMLESS_BYTES, MAX_RATIO * self.packed):
            raise Refused(f"{self.packed:,} bytes would become {total:,}: that is a bomb, not pictures")
        if total > self.free:
            raise Refused(f"it needs {total:,} bytes, and {max(self.free, 0):,} are free on the disk")


def unpack(what: Unpacking, on_progress: Callable[[Unpacked], None]) -> Unpacked:
    """Unpack `what`, a zip, or a tar that is packed or not.

    Raises:
        Refused: it is damaged, encrypted, a bomb, or finds no room; nothing of it is in the data set.
        OSError: the disk.
    """
    done = Unpacked()
    shutil.rmtree(what.staging, ignore_errors=True)
    what.staging.mkdir()
    room = _Room(what.archive.stat().st_size, shutil.disk_usage(what.staging).free - SPARE_BYTES)
    try:
        if zipfile.is_zipfile(what.archive):
            check_directory(what.archive)
            with zipfile.ZipFile(what.archive) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                _check(entries, room)
                done.num_entries = len(entries)
                names = _extract(_of_zip(archive, entries, what.encoding), room, what, done, on_progress)
        else:
            # As a stream: to list a packed one, all of it would be unpacked.
            with open_tar(what.archive, "r|*", what.encoding or "utf-8") as archive:
                names = _extract(_of_tar(archive), room, what, done, on_progress)
    except _DAMAGED as error:
        raise Refused(f"the archive is damaged, or of a kind that cannot be read: {error}") from error
    except MemoryError:
        raise Refused("its list of names takes too much memory") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # bz2 tells of damage so.
        raise Refused(f"the archive is damaged: {error}") from error
    _move_in(names, what, done)
    return done


def _check(entries: list[zipfile.ZipInfo], room: _Room) -> None:
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"it has {len(entries):,} entries; {MAX_ENTRIES:,} are the limit")
    if any(entry.flag_bits & ENCRYPTED_FLAG for entry in entries):
        raise Refused("it is encrypted: unpack it, and send it without a password")
    _check_overlaps(entries)
    room.require(sum(entry.file_size for entry in entries))


def _check_overlaps(entries: list[zipfile.ZipInfo]) -> None:
    """Raises Refused where entries share bytes of the archive: so a bomb has one content many times."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise Refused("entries of it overlap: that is a bomb, not pictures")
        end = entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size


def check_directory(path: Path) -> None:
    """Refuse a zip whose list of entries is too long, before it is read into memory.

    Raises:
        Refused: it is.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_BYTES))
        tail = file.read()
        at = tail.rfind(b"PK\x05\x06")
        if at < 0:
            return  # zipfile says what is wrong with it
        count, size = struct.unpack_from("<HI", tail, at + 10) if len(tail) >= at + 16 else (0, 0)
        locator = tail.rfind(b"PK\x06\x07", 0, at)
        if locator >= 0:
            (offset,) = struct.unpack_from("<Q", tail, locator + 8)
            file.seek(min(offset, 2**62))
            record = file.read(56)
            if record.startswith(b"PK\x06\x06") and len(record) == 56:
                count, size = struct.unpack_from("<QQ", record, 32)
    if count > MAX_ENTRIES:
        raise Refused(f"it has {count:,} entries; {MAX_ENTRIES:,} are the limit")
    if size > MAX_DIRECTORY_BYTES:
        raise Refused(f"its list of entries has {size:,} bytes; {MAX_DIRECTORY_BYTES:,} are the limit")


def _of_zip(archive: zipfile.ZipFile, entries: Iterable[zipfile.ZipInfo], encoding: str) -> Iterator[_Entry]:
    for entry in entries:
        fault = "it is a link" if stat.S_ISLNK(entry.external_attr >> 16) else ""
        name = _name_of(entry, encoding)
        yield _Entry(name, entry.file_size, entry.compress_size, fault, partial(archive.open, entry))


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for member in archive:
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue] -- or it keeps every header
        if member.isdir():
            continue
        is_link = member.issym() or member.islnk()
        fault = "" if member.isreg() else "it is a link" if is_link else "it is no plain file"

        def open_it(member: tarfile.TarInfo = member) -> IO[bytes]:
            file = archive.extractfile(member)
            assert file, "a plain file can be read"
            return file

        yield _Entry(member.name, member.size, None, fault, open_it)


def _extract(
    entries: Iterable[_Entry],
    room: _Room,
    what: Unpacking,
    done: Unpacked,
    on_progress: Callable[[Unpacked], None],
) -> list[str]:
    """The names of what lies in the staging folder now."""
    names: list[str] = []
    taken: set[str] = set()
    folders: set[str] = set()
    total = 0
    for entry in entries:
        done.num_done += 1
        on_progress(done)
        if entry.size < 0:
            raise Refused(f"the archive is damaged: {entry.name} has {entry.size} bytes")
        total += entry.size
        room.require(total)
        if done.num_done > MAX_ENTRIES:
            raise Refused(f"it has more than {MAX_ENTRIES:,} entries")
        try:
            fitting = _fitting(entry, taken, folders)
            target = place_for(what.staging, fitting)
        except Unfit as error:
            done.leave_out(entry.name, str(error))
            continue
        except (FileExistsError, NotADirectoryError):
            done.leave_out(entry.name, "a file and a folder have the same name")
            continue
        with entry.open() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        names.append(fitting)
    return names


def _fitting(entry: _Entry, taken: set[str], folders: set[str]) -> str:
    """Its name as a path below the data set, from now on taken.

    Raises:
        Unfit: it is left out.
        Refused: it is a bomb.
    """
    fitting = fit(entry.name)
    if entry.fault:
        raise Unfit(entry.fault)
    key = unicodedata.normalize("NFC", fitting).casefold()
    if key in taken:
        raise Unfit("an entry of the same name was before it")
    above = {key[:at] for at, letter in enumerate(key) if letter == "/"}
    if key in folders or above & taken:
        raise Unfit("a file and a folder have the same name")
    taken.add(key)
    folders |= above
    if entry.packed is not None and entry.size > max(HARMLESS_BYTES, MAX_RATIO * entry.packed):
        raise Refused(f"{entry.name} would become {entry.size:,} bytes: that is a bomb, not a picture")
    return fitting


def _name_of(entry: zipfile.ZipInfo, encoding: str) -> str:
    """The name as its maker meant it: many write UTF-8 without saying so."""
    if entry.flag_bits & UTF8_FLAG:
        return entry.filename
    stored = entry.orig_filename.encode("cp437", "surrogateescape")
    for known in (_unicode_path(entry.extra, stored), stored):
        for codec in ("utf-8", encoding):
            with suppress(UnicodeDecodeError, LookupError):
                if known is not None and codec:
                    return known.decode(codec)
    return entry.filename


def _unicode_path(extra: bytes, stored: bytes) -> bytes | None:
    while len(extra) >= 4:
        kind, length = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        content, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == UNICODE_PATH and int.from_bytes(content[1:5], "little") == zlib.crc32(stored):
            return content[5:]
    return None


def _move_in(names: list[str], what: Unpacking, done: Unpacked) -> None:
    """Rename everything into the data set."""
    for name in names:
        source = what.staging / name
        try:
            target = place_for(what.folder, name)
            if what.replaces and not target.is_dir():
                source.replace(target)
            elif not move_new(source, target) and not _is_same(source, target):
                done.leave_out(name, "another file of this name is there")
                continue
        except (FileExistsError, NotADirectoryError, Unfit):
            done.leave_out(name, "a file or a link is in the way")
            continue
        done.num_files += 1
        done.num_images += split_suffix(name)[1] in PICTURES


def _is_same(source: Path, target: Path) -> bool:
    """Whether it was moved there by an earlier try."""
    return target.is_file() and filecmp.cmp(source, target, shallow=False)
