"""Resumable uploads by the tus protocol 1.0 (https://tus.io).

An upload is a folder in the dataset's `.uploads`: about.json describes it, `data` has the received bytes, and
its length is the offset, so nothing is lost when the studio is killed. A complete file is moved to its place;
a complete zip is unpacked by a separate process.
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
from typing import Any

from pydantic import TypeAdapter
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
from flowloom.server.datasets.unpack_report import UnpackView, read_report
from flowloom.server.problems import OutsideRoots, ServiceError, TooLarge

FOLDER = ".uploads"
MAX_BYTES = 2**40
MAX_OPEN = 10_000
"""Maximum number of unfinished uploads per dataset."""
EXPIRES_AFTER_S = 7 * 86_400
REMEMBERED = 20_000
"""Number of finished uploads that a client can still query."""
ALGORITHMS = ("sha1", "sha256", "md5")
_ID = re.compile(r"[0-9a-f]{32}")


class NoSuchUpload(ServiceError):
    status, code, title = 404, "no-such-upload", "There is no such upload."

    def __init__(self, upload_id: str):
        super().__init__(
            f"There is no upload {upload_id!r}: it is finished, expired or was ended.",
            "Start the upload again.",
        )


class WrongOffset(ServiceError):
    status, code, title = 409, "wrong-offset", "The offset is wrong."


class FileSkipped(ServiceError):
    status, code, title = 422, "file-skipped", "This file was skipped."


class FileTaken(ServiceError):
    status, code, title = 409, "file-taken", "A file of this name exists."


class Busy(ServiceError):
    status, code, title = 423, "busy", "Another request is writing to this upload."


class WrongChecksum(ServiceError):
    status, code, title = 460, "wrong-checksum", "The checksum does not match."


@dataclass(frozen=True)
class Upload:
    """One upload."""

    id: str
    folder: Path
    name: str
    """Path of the file in the dataset; for a zip its original name."""
    length: int
    metadata: str
    """The header that the client sent."""
    replaces: bool
    encoding: str

    @property
    def is_zip(self) -> bool:
        """True if it is unpacked when complete."""
        return self.name.lower().endswith(ZIP)

    @property
    def data(self) -> Path:
        """The file of received bytes."""
        return self.folder / "data"

    @property
    def offset(self) -> int:
        """Number of received bytes."""
        try:
            return self.data.stat().st_size
        except FileNotFoundError:
            return self.length  # it was moved or unpacked

    @property
    def expires(self) -> float:
        """Time when it expires, in seconds since 1970."""
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
            InvalidName, FileSkipped, FileTaken, TooLarge, NoRoom, WrongKind: it is refused.
        """
        top = dataset.folder
        fields = parsed_metadata(metadata)
        name = _fitting(
            fields.get("relativePath")
            or fields.get("path")
            or fields.get("filename")
            or fields.get("name", "")
        )
        replaces = fields.get("conflict", "keep") == "replace"
        self.clear_away(dataset)
        if not name.lower().endswith(ZIP) and not replaces and os.path.lexists(top / name):
            raise FileTaken(f"{name} exists already.", "Skip it, or send the metadata conflict=replace.")
        if length > MAX_BYTES:
            raise TooLarge(
                f"The file has {length:,} bytes; the limit is {MAX_BYTES:,}.", "Split the archive."
            )
        if len(list((top / FOLDER).glob("*"))) >= MAX_OPEN:
            raise TooLarge(f"{MAX_OPEN:,} uploads are unfinished.", "Finish or end some of them.")
        upload_id = secrets.token_hex(16)
        folder = top / FOLDER / upload_id
        about = {"name": name, "length": length, "metadata": metadata, "replaces": replaces}
        with self._reserved.lock:
            self._reserved.require(top, length, FOLDER)
            folder.mkdir(parents=True)
            (folder / "data").touch()
            self._reserved.add(folder, length)
        write_json(folder / "about.json", about | {"encoding": fields.get("encoding", "")})
        return self.get(dataset, upload_id)

    def get(self, dataset: Dataset, upload_id: str) -> Upload:
        """The upload of this id.

        Raises:
            NoSuchUpload: it does not exist.
        """
        if finished := self._finished.get((dataset.key, upload_id)):
            return finished
        folder = dataset.folder / FOLDER / upload_id
        try:
            if not _ID.fullmatch(upload_id):
                raise NoSuchUpload(upload_id)
            about = read_json(folder / "about.json")
            return Upload(upload_id, folder, **_ABOUT.validate_python(about))
        except (OSError, ValueError):
            raise NoSuchUpload(upload_id) from None

    def all(self, dataset: Dataset) -> list[Upload]:
        """Unfinished uploads, and zips that are being unpacked or were recently."""
        found: list[Upload] = []
        for folder in sorted((dataset.folder / FOLDER).glob("*")):
            with suppress(NoSuchUpload):
                found.append(self.get(dataset, folder.name))
        return found

    @contextmanager
    def writing(self, upload: Upload, offset: int) -> Generator[Part]:
        """Write to `upload` from `offset` on. Written data is kept however the block ends.

        Raises:
            WrongOffset: the upload has another offset.
            Busy: another request is writing.
        """
        if not upload.data.exists():
            raise WrongOffset("The upload is complete.", "Read the offset with HEAD.")
        with upload.data.open("r+b") as file:
            if not try_lock(file):
                raise Busy("Its previous request is still open.", "Try again in a second.")
            if file.seek(0, os.SEEK_END) != offset:
                raise WrongOffset(
                    f"The offset is {file.tell():,}, not {offset:,}.", "Read the offset with HEAD."
                )
            yield Part(upload, file, offset)

    def finish(self, dataset: Dataset, upload: Upload) -> None:
        """Move a complete file to its place, or start to unpack a zip.

        Raises:
            FileTaken: a file of this name was created meanwhile.
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
                f"A folder of {upload.name} exists as a file.", "Upload it to another folder."
            ) from None
        if upload.replaces and not target.is_dir():
            upload.data.replace(target)
        elif not move_if_free(upload.data, target):
            raise FileTaken(
                f"{upload.name} was created meanwhile.", "End this upload, or send it with conflict=replace."
            )
        with self._lock:
            self._finished[dataset.key, upload.id] = upload
            while len(self._finished) > REMEMBERED:
                self._finished.popitem(last=False)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def unpack(self, upload: Upload) -> None:
        """Start to unpack a zip, unless that is done."""
        if (upload.folder / "report.json").exists():
            return
        command = [sys.executable, "-m", "flowloom.server.datasets.unpack", str(upload.folder)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        # Waited for, so that it does not stay as a zombie.
        threading.Thread(target=process.wait, daemon=True, name="unpacking").start()

    def report(self, upload: Upload) -> UnpackView:
        """State of a zip's unpacking, which is resumed if the studio or its process was killed."""
        if report := read_report(upload.folder / "report.json"):
            return report
        self._resume_unpacking(upload)
        return read_report(upload.folder / "progress.json") or UnpackView()

    def _resume_unpacking(self, upload: Upload) -> None:
        """Start to unpack again, unless a process does."""
        with (upload.folder / "lock").open("a") as lock:
            if not try_lock(lock):
                return
        self.unpack(upload)

    def end(self, dataset: Dataset, upload: Upload) -> None:
        """End an upload and remove its data."""
        with self._lock:
            self._finished.pop((dataset.key, upload.id), None)
        shutil.rmtree(upload.folder, ignore_errors=True)

    def clear_away(self, dataset: Dataset) -> None:
        """Remove expired uploads."""
        for upload in self.all(dataset):
            with suppress(OSError):
                if upload.expires < time.time():
                    self.end(dataset, upload)


@dataclass
class Part:
    """The part of an upload that one request sends."""

    upload: Upload
    file: Any
    offset: int

    def begin(self, checksum: str) -> None:
        """Start to count the data and, if `Upload-Checksum` is given, to hash it.

        Raises:
            InvalidName: the header cannot be read.
        """
        self.written = 0
        algorithm, _, value = checksum.partition(" ")
        if checksum and algorithm not in ALGORITHMS:
            raise InvalidName(
                f"{algorithm!r} is not a supported checksum.", f"Use one of {', '.join(ALGORITHMS)}."
            )
        self._hash = hashlib.new(algorithm, usedforsecurity=False) if checksum else None
        self._expected = value

    def write(self, chunk: bytes) -> None:
        """Add `chunk`.

        Raises:
            TooLarge: it exceeds the announced length.
        """
        if self.offset + self.written + len(chunk) > self.upload.length:
            self.file.truncate(self.offset)
            raise TooLarge(
                f"The data exceeds the announced {self.upload.length:,} bytes.", "Start the upload again."
            )
        self.file.write(chunk)
        self.written += len(chunk)
        if self._hash:
            self._hash.update(chunk)

    def close(self, *, is_complete: bool) -> None:
        """Keep the data; with a checksum, only if the part is complete and correct.

        Raises:
            WrongChecksum: the part is complete and not correct.
        """
        if self._hash is not None:
            found = base64.b64encode(self._hash.digest()).decode()
            if not is_complete or found != self._expected:
                self.file.truncate(self.offset)
                self.written = 0
                if is_complete:
                    raise WrongChecksum(
                        f"The checksum of the received data is {found}.", "Send this part again."
                    )
        self.file.flush()


def parsed_metadata(header: str) -> dict[str, str]:
    """`Upload-Metadata`: keys with base64 values.

    Raises:
        InvalidName: it cannot be read.
    """
    fields: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else ():
        key, _, value = pair.strip().partition(" ")
        try:
            fields[key] = base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidName(
                f"Upload-Metadata: {key!r} is not base64 of UTF-8.", "See https://tus.io."
            ) from None
    return fields


def _fitting(name: str) -> str:
    if name.lower().endswith(ZIP):
        parts = name.replace("\\", "/").split("/")
        return "".join(letter for letter in parts[-1] if letter.isprintable())[-200:]
    try:
        return safe_name(name)
    except UnsupportedFile as error:
        suffixes = ", ".join(sorted(TEXTS | {ZIP}))
        raise FileSkipped(f"{name:.300}: {error}.", f"Datasets accept images and {suffixes}.") from None
    except UnsafeName as error:
        raise InvalidName(f"{name!r:.300}: {error}.", "Rename the file.") from None
