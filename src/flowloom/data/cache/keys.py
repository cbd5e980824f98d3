"""Keys of cached records: from all that decides their numbers, and from nothing else.

A file's content is known by its bytes, which are hashed once: size, times and inode tell whether that is
still true. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.metadata import Row
from flowloom.errors import ImageError

CROP_RULE = "cover, centre, Lanczos, sRGB; 1"
"""How data/images/decode.py makes pixels of a file: counted up when it makes other ones."""
DIGESTS = "files-*.digests"
_LINE = np.dtype([("high", "<u8"), ("low", "<u8"), ("content", "V16"), ("check", "<u8")])
_CHUNK = 2**20
JUST_WRITTEN_NS = 2_000_000_000
"""A file that was changed so shortly ago may change again and show the same time."""
Digests = tuple[NDArray[np.uint64], NDArray[np.void]]
"""Lines by the first half of their signature, sorted."""


def digest(*ingredients: bytes | str | int) -> bytes:
    """16 bytes of what stands in `ingredients`; where one ends and the next begins counts."""
    whole = hashlib.blake2b(digest_size=16)
    for ingredient in ingredients:
        is_raw = isinstance(ingredient, bytes)
        part = ingredient if is_raw else str(ingredient).encode("utf-8", "surrogatepass")
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.digest()


@dataclass(frozen=True)
class Crop:
    """What becomes of an image before it is encoded."""

    size: tuple[int, int]
    """Width and height of the bucket in pixels."""
    background: tuple[int, int, int]
    rule: str = CROP_RULE


@dataclass(frozen=True)
class EncodedBy:
    """The network behind a record and the format of its numbers."""

    weights: bytes
    """16 bytes: hash of its files."""
    dtype: str
    """As it computes."""
    stored_as: str
    form: str = ""
    """What is kept of its output, and settings of the network beside its weights."""


def latents_key(kind: str, content: bytes, crop: Crop, by: EncodedBy) -> bytes:
    """The key of an image's latents; `content` is what Contents says of its file."""
    made = (*crop.size, *crop.background, crop.rule)
    return digest(kind, content, *made, by.weights, by.dtype, by.stored_as, by.form)


def caption_key(kind: str, caption: str, by: EncodedBy) -> bytes:
    """The key of a caption's states; `caption` is as it is shown: dropped, shuffled, lower-cased."""
    return digest(kind, caption, by.weights, by.dtype, by.stored_as, by.form)


class Contents:
    """What the image of each row holds, as 16 bytes: its own, or its server's ETag and size."""

    def __init__(
        self, folder_of: Callable[[Row], str], memory: Path, images: ImageSource, *, is_black: bool = False
    ):
        """`folder_of` says where the file name of a row begins."""
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
        """The digest of the row's image; a file that was seen before is not read again.

        Raises:
            ImageError: there is no such file or address.
        """
        if self._is_black:
            return digest("black")
        folder = self._folder_of(row)
        if self._images.is_remote(row, folder):
            address = row.filename if row.is_url_based else f"{folder}/{row.filename}"
            if address not in self._of_urls:
                self._of_urls[address] = self._of_stored(row, folder)
            return self._of_urls[address]
        path = self._images.get(row, folder)
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
        known = self._new.get(signature) or _look_up(self._old, signature)
        if known is None:
            now = time.time_ns()
            known = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
            if now - max(stat.st_mtime_ns, stat.st_ctime_ns) >= JUST_WRITTEN_NS:
                self._remember(signature, known)
        return known

    def _remember(self, signature: bytes, content: bytes) -> None:
        line = signature + content
        with self._lock:
            self._new[signature] = content
            if self._file is None:
                self._memory.mkdir(parents=True, exist_ok=True)
                path = self._memory / DIGESTS.replace("*", f"{os.getpid()}-{secrets.token_hex(4)}")
                self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)
            os.write(self._file, line + xxhash.xxh3_64_intdigest(line).to_bytes(8, "little"))

    def _of_stored(self, row: Row, folder: str) -> bytes:
        entry = self._images.stat(row, folder)
        if entry.etag:
            return digest("etag", entry.etag, entry.size)
        content = self._images.get(row, folder)
        return hashlib.blake2b(content if isinstance(content, bytes) else b"", digest_size=16).digest()

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read_digests(folder: Path) -> Digests:
    """What earlier processes remembered: sorted; lines that were torn are left out."""
    found = [np.zeros(0, _LINE)]
    for path in sorted(folder.glob(DIGESTS)):
        raw = path.read_bytes()
        lines = np.frombuffer(raw[: len(raw) // _LINE.itemsize * _LINE.itemsize], _LINE)
        found.append(lines)
    whole = np.concatenate(found)
    whole = whole[np.argsort(whole["high"], kind="stable")]
    return np.ascontiguousarray(whole["high"]), whole


def _look_up(known: Digests, signature: bytes) -> bytes | None:
    highs, lines = known
    high, low = np.frombuffer(signature, "<u8", 2)
    at = int(highs.searchsorted(high))
    while at < len(lines) and highs[at] == high:
        raw = lines[at].tobytes()
        if lines["low"][at] == low and xxhash.xxh3_64_intdigest(raw[:-8]) == int(lines["check"][at]):
            return raw[16:32]
        at += 1
    return None


def hash_files(paths: list[Path]) -> bytes:
    """16 bytes of the content of `paths`, in their order, whatever they are called; each is read once."""
    found: dict[Path, bytes] = {}
    whole = hashlib.blake2b(digest_size=16)
    for path in paths:
        if path not in found:
            found[path] = _hash_file(path)
        whole.update(found[path])
    return whole.digest()


def _hash_file(path: Path) -> bytes:
    one = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            one.update(chunk)
    return one.digest()
