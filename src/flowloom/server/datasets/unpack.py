"""A process of its own unpacks an uploaded zip: `python -m flowloom.server.datasets.unpack UPLOAD_DIR`.

Every entry goes to a folder beside the archive, and when all of them are there, into the data set; names that
lead out, links, nested archives and what is neither picture nor text are left out and told. What unpacks to
much more than it is (a bomb) is refused before, and stopped while, it is unpacked.
"""

from __future__ import annotations

import fcntl
import filecmp
import json
import resource
import shutil
import stat
import sys
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flowloom.data.prepare.items import PICTURES
from flowloom.data.prepare.pairs import split_suffix
from flowloom.server.datasets.names import Unfit, fit, move_new, place_for

MAX_ENTRIES = 1_000_000
MAX_RATIO = 100
"""Of what is unpacked to the archive: pictures are hardly ever 2."""
HARMLESS_BYTES = 64 * 2**20
"""Below this, no ratio is a bomb."""
SPARE_BYTES = 2**29
"""Left free on the disk."""
MEMORY_BYTES = 4 * 2**30
SECONDS_BETWEEN_REPORTS = 0.5
LISTED = 1000
CHUNK = 2**20
UTF8_FLAG, ENCRYPTED_FLAG = 0x800, 0x1
UNICODE_PATH = 0x7075
"""Extra field of an entry: its name in UTF-8."""


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
    num_pictures: int = 0
    num_left_out: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of the first thousand."""
    error: str = ""

    def leave_out(self, name: str, reason: str) -> None:
        """Tell of one that did not become a file."""
        self.num_left_out += 1
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


def unpack(what: Unpacking, on_progress: Callable[[Unpacked], None]) -> Unpacked:
    """Unpack `what`.

    Raises:
        Refused: it is damaged, encrypted, a bomb, or finds no room; nothing of it is in the data set.
        OSError: the disk.
    """
    done = Unpacked()
    shutil.rmtree(what.staging, ignore_errors=True)
    what.staging.mkdir()
    try:
        with zipfile.ZipFile(what.archive) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check(entries, what)
            done.num_entries = len(entries)
            names = _extract(archive, entries, what, done, on_progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise Refused(f"the archive is damaged, or of a kind that cannot be read: {error}") from error
    except MemoryError:
        raise Refused("its list of names takes too much memory") from None
    _move_in(names, what, done)
    return done


def _check(entries: list[zipfile.ZipInfo], what: Unpacking) -> None:
    if len(entries) > MAX_ENTRIES:
        raise Refused(f"it has {len(entries):,} entries; {MAX_ENTRIES:,} are the limit")
    if any(entry.flag_bits & ENCRYPTED_FLAG for entry in entries):
        raise Refused("it is encrypted: unpack it, and send it without a password")
    packed, total = what.archive.stat().st_size, sum(entry.file_size for entry in entries)
    if total > max(HARMLESS_BYTES, MAX_RATIO * packed):
        raise Refused(f"{packed:,} bytes would become {total:,}: that is a bomb, not pictures")
    free = shutil.disk_usage(what.staging).free - SPARE_BYTES
    if total > free:
        raise Refused(f"it needs {total:,} bytes, and {max(free, 0):,} are free on the disk")


def _extract(
    archive: zipfile.ZipFile,
    entries: list[zipfile.ZipInfo],
    what: Unpacking,
    done: Unpacked,
    on_progress: Callable[[Unpacked], None],
) -> list[str]:
    """The names of what lies in the staging folder now."""
    names: list[str] = []
    taken: set[str] = set()
    for entry in entries:
        done.num_done += 1
        on_progress(done)
        name = _name_of(entry, what.encoding)
        try:
            fitting = fit(name)
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise Unfit("it is a link")
            if unicodedata.normalize("NFC", fitting).casefold() in taken:
                raise Unfit("an entry of the same name was before it")
        except Unfit as error:
            done.leave_out(name, str(error))
            continue
        taken.add(fitting.casefold())
        if entry.file_size > max(HARMLESS_BYTES, MAX_RATIO * entry.compress_size):
            raise Refused(f"{name} would become {entry.file_size:,} bytes: that is a bomb, not a picture")
        try:
            target = place_for(what.staging, fitting)
        except (FileExistsError, NotADirectoryError, Unfit):
            done.leave_out(name, "a file and a folder have the same name")
            continue
        with archive.open(entry) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        names.append(fitting)
    return names


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
        done.num_pictures += split_suffix(name)[1] in PICTURES


def _is_same(source: Path, target: Path) -> bool:
    """Whether it was moved there by an earlier try."""
    return target.is_file() and filecmp.cmp(source, target, shallow=False)


def main() -> int:
    """Unpack the archive in the upload's folder that the command line names; 0 when it is over."""
    upload_dir = Path(sys.argv[1])
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with (upload_dir / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        if (upload_dir / "report.json").exists():
            return 0
        about: dict[str, Any] = json.loads((upload_dir / "about.json").read_text())
        what = Unpacking(
            upload_dir / "data",
            upload_dir / "unpacked",
            upload_dir.parent.parent,
            about["replaces"],
            about["encoding"],
        )
        _write(upload_dir / "report.json", asdict(_reported(what, upload_dir / "progress.json")))
        (upload_dir / "data").unlink(missing_ok=True)
        shutil.rmtree(upload_dir / "unpacked", ignore_errors=True)
    return 0


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def _reported(what: Unpacking, progress: Path) -> Unpacked:
    told_at = 0.0

    def tell(done: Unpacked) -> None:
        nonlocal told_at
        if time.monotonic() - told_at > SECONDS_BETWEEN_REPORTS:
            told_at = time.monotonic()
            _write(progress, {"num_done": done.num_done, "num_entries": done.num_entries})

    try:
        done = unpack(what, tell)
        done.state = "done"
    except Refused as error:
        done = Unpacked("refused", error=f"{error}.")
    except OSError as error:
        done = Unpacked(
            "failed", error=f"{error.strerror}: make room on the disk, or give the right to write."
        )
    return done


if __name__ == "__main__":
    sys.exit(main())
