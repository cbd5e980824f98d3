"""Uploads that go on where they were cut off, by the tus protocol 1.0 (https://tus.io).

An upload is a folder below the dataset's own `.uploads`: about.json says what it is, `data` holds what came
so far, and its length is the offset. So nothing is lost when the studio dies. When all is there, a file is
moved into its place, and a zip is unpacked by a process of its own.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, TypeAdapter
from typing_extensions import TypedDict

from flowloom.datasets.archives.names import (
    TEXTS,
    ZIP,
    UnsafeName,
    UnsupportedFile,
    move_if_free,
    prepare_path,
    safe_name,
)
from flowloom.files import read_json, write_json
from flowloom.locks import try_lock
from flowloom.server.datasets.locations import Dataset, InvalidName
from flowloom.server.datasets.reserved import Reserved
from flowloom.server.problems import OutsideRoots, ServiceError, TooLarge

FOLDER = ".uploads"
MAX_BYTES = 2**40
MAX_OPEN = 10_000
"""Uploads under way, for each dataset."""
EXPIRES_AFTER_S = 7 * 86_400
REMEMBERED = 20_000
"""Finished ones that a client may still ask about."""
ALGORITHMS = ("sha1", "sha256", "md5")
_ID = re.compile(r"[0-9a-f]{32}")


class NoSuchUpload(ServiceError):
    status, code, title = 404, "no-such-upload", "There is no such upload."

    def __init__(self, upload_id: str):
        super().__init__(
            f"No upload is called {upload_id!r}.", "It is over, expired, or was ended: begin anew."
        )


class WrongOffset(ServiceError):
    status, code, title = 409, "wrong-offset", "The upload is at another offset."


class FileSkipped(ServiceError):
    status, code, title = 422, "file-skipped", "This file was skipped."


class FileTaken(ServiceError):
    status, code, title = 409, "file-taken", "There is a file of this name."


class Busy(ServiceError):
    status, code, title = 423, "busy", "Another request is writing to this upload."


class WrongChecksum(ServiceError):
    status, code, title = 460, "wrong-checksum", "What came is not what was sent."


@dataclass(frozen=True)
class Upload:
    """One upload."""

    id: str
    folder: Path
    name: str
    """Where the file goes below the dataset; of a zip what it was called."""
    length: int
    metadata: str
    """As the client sent it."""
    replaces: bool
    encoding: str

    @property
    def is_zip(self) -> bool:
        """Whether it is to be unpacked."""
        return self.name.lower().endswith(ZIP)

    @property
    def data(self) -> Path:
        """What came so far."""
        return self.folder / "data"

    @property
    def offset(self) -> int:
        """How much came so far, in bytes."""
        try:
            return self.data.stat().st_size
        except FileNotFoundError:
            return self.length  # it is in its place, or unpacked

    @property
    def expires(self) -> float:
        """When it is given up, in seconds since 1970."""
        for path in (self.data, self.folder):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime + EXPIRES_AFTER_S
        return time.time()


class _About(TypedDict):
    name: str
    length: int
    metadata: str
    replaces: bool
    encoding: str


_ABOUT = TypeAdapter(_About)


class UnpackReport(BaseModel):
    """The unpacking of a zip."""

    state: Literal["unpacking", "done", "refused", "failed"] = Field(default="unpacking", examples=["done"])
    num_done: int = Field(default=0, description="Entries that were read.")
    num_entries: int = Field(default=0, description="Entries of the zip; 0: not known yet.")
    num_files: int = Field(default=0, description="Files that were added to the dataset.", examples=[24])
    num_images: int = 0
    num_left_out: int = 0
    reasons: dict[str, int] = Field(default={}, description="Number of entries left out, by reason.")
    left_out: list[tuple[str, str]] = Field(
        default=[], description="Name and reason of the first entries left out."
    )
    error: str = ""


def _read_report(path: Path) -> UnpackReport | None:
    try:
        return UnpackReport.model_validate(read_json(path))
    except (OSError, ValueError):
        return None


class Uploads:
    """The uploads of all datasets."""

    def __init__(self) -> None:
        self._finished: OrderedDict[tuple[str, str], Upload] = OrderedDict()
        self._lock = threading.Lock()
        self._reserved = Reserved()

    def create(self, dataset: Dataset, length: int, metadata: str) -> Upload:
        """Begin an upload of `length` bytes.

        Args:
            metadata: `Upload-Metadata`: filename or relativePath, conflict (keep, replace), encoding.

        Raises:
            InvalidName, FileSkipped, FileTaken, TooLarge, NoRoom, WrongKind: as their names say.
        """
        top = dataset.folder
        told = parsed_metadata(metadata)
        name = _fitting(
            told.get("relativePath") or told.get("path") or told.get("filename") or told.get("name", "")
        )
        replaces = told.get("conflict", "keep") == "replace"
        self.clear_away(dataset)
        if not name.lower().endswith(ZIP) and not replaces and os.path.lexists(top / name):
            raise FileTaken(
                f"{name} is there already.", "Send the metadata conflict=replace, or leave it out."
            )
        if length > MAX_BYTES:
            raise TooLarge(
                f"The file has {length:,} bytes; {MAX_BYTES:,} are the limit.", "Split the archive."
            )
        if len(list((top / FOLDER).glob("*"))) >= MAX_OPEN:
            raise TooLarge(f"{MAX_OPEN:,} uploads are under way.", "End or finish some of them.")
        upload_id = secrets.token_hex(16)
        folder = top / FOLDER / upload_id
        about = {"name": name, "length": length, "metadata": metadata, "replaces": replaces}
        with self._reserved.lock:
            self._reserved.require(top, length, FOLDER)
            folder.mkdir(parents=True)
            (folder / "data").touch()
            self._reserved.add(folder, length)
        write_json(folder / "about.json", about | {"encoding": told.get("encoding", "")})
        return self.get(dataset, upload_id)

    def get(self, dataset: Dataset, upload_id: str) -> Upload:
        """The upload of this id.

        Raises:
            NoSuchUpload: there is none.
        """
        known = self._finished.get((dataset.key, upload_id))
        if known:
            return known
        folder = dataset.folder / FOLDER / upload_id
        try:
            if not _ID.fullmatch(upload_id):
                raise NoSuchUpload(upload_id)
            about = read_json(folder / "about.json")
            return Upload(upload_id, folder, **_ABOUT.validate_python(about))
        except (OSError, ValueError):
            raise NoSuchUpload(upload_id) from None

    def all(self, dataset: Dataset) -> list[Upload]:
        """Those that are not over, and archives that are being unpacked or were of late."""
        found: list[Upload] = []
        for folder in sorted((dataset.folder / FOLDER).glob("*")):
            with suppress(NoSuchUpload):
                found.append(self.get(dataset, folder.name))
        return found

    @contextmanager
    def writing(self, upload: Upload, offset: int) -> Generator[Part]:
        """Write to `upload` from `offset` on; what was written when the block ends, however, is kept.

        Raises:
            WrongOffset: it is elsewhere.
            Busy: somebody else is writing.
        """
        if not upload.data.exists():
            raise WrongOffset("All of it has come.", "HEAD tells the offset.")
        with upload.data.open("r+b") as file:
            if not try_lock(file):
                raise Busy("Its last request is still open.", "Try again in a second.")
            if file.seek(0, os.SEEK_END) != offset:
                raise WrongOffset(f"It is at {file.tell():,}, not at {offset:,}.", "HEAD tells the offset.")
            yield Part(upload, file, offset)

    def finish(self, dataset: Dataset, upload: Upload) -> None:
        """What is to be done when all bytes are there: move the file, or start to unpack.

        Raises:
            FileTaken: somebody made a file of the same name meanwhile.
        """
        if upload.is_zip:
            self.unpack(upload)
            return
        if not upload.data.exists():
            return
        try:
            target = prepare_path(dataset.folder, upload.name)
        except UnsafeName:
            raise OutsideRoots(upload.name) from None
        except (FileExistsError, NotADirectoryError):
            raise FileTaken(
                f"A file is where {upload.name} wants a folder.", "Upload it elsewhere."
            ) from None
        if upload.replaces and not target.is_dir():
            upload.data.replace(target)
        elif not move_if_free(upload.data, target):
            raise FileTaken(
                f"{upload.name} is there by now.", "End this upload, or send it with conflict=replace."
            )
        with self._lock:
            self._finished[dataset.key, upload.id] = upload
            while len(self._finished) > REMEMBERED:
                self._finished.popitem(last=False)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def unpack(self, upload: Upload) -> None:
        """Have a zip unpacked, unless that is under way or over."""
        if (upload.folder / "report.json").exists():
            return
        words = [sys.executable, "-m", "flowloom.server.datasets.unpack", str(upload.folder)]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        # Somebody has to ask how it ended, or it stays in the system's list.
        threading.Thread(target=process.wait, daemon=True, name="unpacking").start()

    def report(self, upload: Upload) -> UnpackReport:
        """State of a zip's unpacking, which is resumed if the studio or its process was killed."""
        if report := _read_report(upload.folder / "report.json"):
            return report
        self._resume_unpacking(upload)
        return _read_report(upload.folder / "progress.json") or UnpackReport()

    def _resume_unpacking(self, upload: Upload) -> None:
        """Start to unpack again, unless a process does."""
        with (upload.folder / "lock").open("a") as lock:
            if not try_lock(lock):
                return
        self.unpack(upload)

    def end(self, dataset: Dataset, upload: Upload) -> None:
        """Give an upload up, and remove what came of it."""
        with self._lock:
            self._finished.pop((dataset.key, upload.id), None)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def clear_away(self, dataset: Dataset) -> None:
        """Remove uploads that nobody went on with."""
        for upload in self.all(dataset):
            with suppress(OSError):
                if upload.expires < time.time():
                    self.end(dataset, upload)


@dataclass
class Part:
    """What one request adds to an upload."""

    upload: Upload
    file: Any
    offset: int

    def begin(self, checksum: str) -> None:
        """Count what is written, and hash it where `Upload-Checksum` says how.

        Raises:
            InvalidName: the header cannot be read.
        """
        self.written = 0
        algorithm, _, value = checksum.partition(" ")
        if checksum and algorithm not in ALGORITHMS:
            raise InvalidName(
                f"{algorithm!r} is no checksum that is known.", f"Use one of {', '.join(ALGORITHMS)}."
            )
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if checksum else None
        self._expected = value

    def write(self, chunk: bytes) -> None:
        """Add `chunk`.

        Raises:
            TooLarge: that is more than was announced.
        """
        if self.offset + self.written + len(chunk) > self.upload.length:
            self.file.truncate(self.offset)
            raise TooLarge(f"More came than the {self.upload.length:,} bytes announced.", "Begin anew.")
        self.file.write(chunk)
        self.written += len(chunk)
        if self._hash:
            self._hash.update(chunk)

    def close(self, *, is_whole: bool) -> None:
        """Keep what came; where it has a checksum, only if all came and it is right.

        Raises:
            WrongChecksum: it is not.
        """
        if self._hash is not None:
            found = base64.b64encode(self._hash.digest()).decode()
            if not is_whole or found != self._expected:
                self.file.truncate(self.offset)
                self.written = 0
                if is_whole:
                    raise WrongChecksum(f"Its checksum is {found}.", "Send that part again.")
        self.file.flush()


def parsed_metadata(header: str) -> dict[str, str]:
    """`Upload-Metadata`: keys with base64 values.

    Raises:
        InvalidName: it cannot be read.
    """
    told: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        try:
            told[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidName(
                f"Upload-Metadata: {key!r} is no base64 of UTF-8.", "See https://tus.io."
            ) from None
    return told


def _fitting(name: str) -> str:
    if name.lower().endswith(ZIP):
        parts = name.replace("\\", "/").split("/")
        return "".join(letter for letter in parts[-1] if letter.isprintable())[-200:]
    try:
        return safe_name(name)
    except UnsupportedFile as error:
        known = ", ".join(sorted(TEXTS | {ZIP}))
        raise FileSkipped(f"{name:.300}: {error}.", f"Datasets hold images, and {known}.") from None
    except UnsafeName as error:
        raise InvalidName(f"{name!r:.300}: {error}.", "Rename the file.") from None
