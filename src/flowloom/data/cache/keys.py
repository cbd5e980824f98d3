"""Keys of cached records: hashes of everything that determines their numbers.

The bytes of a file are hashed once, and again only if its size, times or inode change. Imports no torch.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.data.metadata import Row
from flowloom.errors import ImageError

CROP_RULE = "cover, centre, Lanczos, sRGB; 1"
"""The rule of data/images/decode.py; its number is incremented when the pixels change."""
REFERENCE_RULE = "whole, Lanczos, sRGB; 1"
"""The rule of reference images, likewise."""
DIGESTS = "files-*.digests"
_LINE = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "V16"), ("check", "<u8")])
_CHUNK = 2**20
JUST_WRITTEN_NS = 2_000_000_000
"""A file that was changed within this time may change again without a new modification time."""
Digests = tuple[NDArray[np.uint64], NDArray[np.void]]
"""Sorted first halves of the signatures, and their lines."""


def digest(*ingredients: bytes | str | int) -> bytes:
    """16-byte hash of `ingredients`, including their boundaries."""
    hasher = hashlib.blake2b(digest_size=16)
    for ingredient in ingredients:
        is_raw = isinstance(ingredient, bytes)
        part = ingredient if is_raw else str(ingredient).encode("utf-8", "surrogatepass")
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


@dataclass(frozen=True)
class Crop:
    """The preprocessing of an image before it is encoded."""

    size: tuple[int, int]
    """Width and height of the bucket in pixels."""
    background: tuple[int, int, int]
    rule: str = CROP_RULE
    clip: tuple[str | int, ...] = ()
    """Of a clip: number of frames, frame rate, start, and the rule of decoding."""


@dataclass(frozen=True)
class EncodedBy:
    """The encoder of a record and the format of its numbers."""

    weights: bytes
    """16-byte hash of its files."""
    dtype: str
    """Of the computation."""
    stored_as: str
    form: str = ""
    """The stored part of its output, and settings of the network other than its weights."""


def latents_key(kind: str, content: bytes, crop: Crop, by: EncodedBy) -> bytes:
    """The key of the latents of an image or clip; `content` is the digest of its file from Contents."""
    pixels = (*crop.size, *crop.background, crop.rule, *crop.clip)
    return digest(kind, content, *pixels, by.weights, by.dtype, by.stored_as, by.form)


def caption_key(kind: str, caption: str, by: EncodedBy, references: Sequence[bytes] = ()) -> bytes:
    """The key of a caption's states; `caption` is the text after dropping, shuffling and lower-casing.

    Args:
        references: digests of the images that are encoded with it, and of how they are resized.
    """
    return digest(kind, caption, by.weights, by.dtype, by.stored_as, by.form, *references)


class Contents:
    """16-byte digest of the image of each row: of its bytes, or of its ETag and size in a store."""

    def __init__(
        self, folder_of: Callable[[Row], str], memory: Path, images: ImageSource, *, is_black: bool = False
    ):
        """`folder_of` returns the folder that the file name of a row is relative to."""
        self._folder_of = folder_of
        self._memory = memory
        self._images = images
        self._is_black = is_black
        self._of_urls: dict[str, bytes] = {}
        self._new: dict[bytes, bytes] = {}
        self._old = _read_digests(memory)
        self._file: int | None = None
        self._lock = threading.Lock()

    def of(self, row: Row) -> bytes:
        """The digest of the row's image; an unchanged file is not read again.

        Raises:
            ImageError: the file or URL does not exist.
        """
        if self._is_black:
            return digest("black")
        folder = self._folder_of(row)
        if self._images.is_remote(row, folder):
            address = row.filename if row.is_url_based else f"{folder}/{row.filename}"
            if address not in self._of_urls:
                self._of_urls[address] = self._of_object(row, folder)
            return self._of_urls[address]
        path = self._images.open_video(row, folder) if row.is_clip else self._images.get(row, folder)
        assert isinstance(path, Path)
        try:
            return self._of_file(path)
        except OSError as error:
            raise ImageError(f"not readable: {error.strerror}") from error

    def _of_file(self, path: Path) -> bytes:
        stat = path.stat()
        signature = digest(
            str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev
        )
        content = self._new.get(signature) or _find(self._old, signature)
        if content is None:
            now = time.time_ns()
            with path.open("rb") as file:
                content = hashlib.file_digest(file, _hasher).digest()
            if now - max(stat.st_mtime_ns, stat.st_ctime_ns) >= JUST_WRITTEN_NS:
                self._remember(signature, content)
        return content

    def _remember(self, signature: bytes, content: bytes) -> None:
        line = signature + content
        with self._lock:
            self._new[signature] = content
            if self._file is None:
                self._memory.mkdir(parents=True, exist_ok=True)
                path = self._memory / DIGESTS.replace("*", f"{os.getpid()}-{secrets.token_hex(4)}")
                self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            os.write(self._file, line + xxhash.xxh3_64_intdigest(line).to_bytes(8, "little"))

    def _of_object(self, row: Row, folder: str) -> bytes:
        entry = self._images.stat(row, folder)
        if entry.etag:
            return digest("etag", entry.etag, entry.size)
        if row.is_clip:
            with cast("RangedFile", self._images.open_video(row, folder)) as video:
                return hashlib.file_digest(io.BufferedReader(video), _hasher).digest()
        content = self._images.get(row, folder)
        return hashlib.blake2b(content if isinstance(content, bytes) else b"", digest_size=16).digest()

    def close(self) -> None:
        """Close the file of new digests."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _hasher() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _read_digests(folder: Path) -> Digests:
    """Digests from earlier processes, sorted, without incomplete lines."""
    parts = [np.zeros(0, _LINE)]
    for path in sorted(folder.glob(DIGESTS)):
        raw = path.read_bytes()
        lines = np.frombuffer(raw[: len(raw) // _LINE.itemsize * _LINE.itemsize], _LINE)
        parts.append(lines)
    lines = np.concatenate(parts)
    lines = lines[np.argsort(lines["high"], kind="stable")]
    return np.ascontiguousarray(lines["high"]), lines


def _find(digests: Digests, signature: bytes) -> bytes | None:
    highs, lines = digests
    halves: NDArray[np.uint64] = np.frombuffer(signature, "<u8", 2)
    high, low = halves
    at = int(cast("np.intp", highs.searchsorted(high)))
    while at < len(lines) and highs[at] == high:
        raw = lines[at].tobytes()
        if lines["low"][at] == low and xxhash.xxh3_64_intdigest(raw[:-8]) == int(lines["check"][at]):
            return raw[16:32]
        at += 1
    return None


def hash_files(paths: list[Path]) -> bytes:
    """16-byte hash of the contents of `paths` in order, without their names; each file is read once."""
    hashes: dict[Path, bytes] = {}
    hasher = hashlib.blake2b(digest_size=16)
    for path in paths:
        if path not in hashes:
            hashes[path] = _hash_file(path)
        hasher.update(hashes[path])
    return hasher.digest()


def _hash_file(path: Path) -> bytes:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.digest()
