"""Text files that people bring, in the encodings that their editors save.

Every reader of such a file decodes it here: configurations, captions, tables and dataset descriptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flowloom.errors import DataError

MARK = "\ufeff"
"""The byte order mark as a character; Windows editors begin UTF-8 files with it."""
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SAMPLE = 4096
"""Bytes that are looked at for UTF-16 without a mark."""


def decode(data: bytes, encoding: str = "utf-8") -> str:
    """`data` as text: by its mark, as UTF-16 where every second byte is zero, or by `encoding`.

    Raises:
        DataError: it is not text in that encoding.
    """
    encoding = _encoding_of(data) or encoding
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at {error.start}" if error.start < len(data) else "its end"
        raise DataError(f"not {encoding} ({byte})") from error
    if "\0" in text:
        raise DataError("not text: it has zero bytes")
    return text.removeprefix(MARK)


def without_mark(text: str) -> str:
    """`text` without the byte order mark that a decoder may have left at its start."""
    return text.removeprefix(MARK)


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of the file at `path`.

    Raises:
        DataError: it is not text in that encoding.
        OSError: it cannot be read.
    """
    return decode(path.read_bytes(), encoding)


def as_utf8(data: bytes) -> bytes:
    """`data` in UTF-8 without a mark; unchanged where its encoding does not show.

    Raises:
        DataError: it is not text in the encoding of its mark.
    """
    return decode(data).encode("utf-8", "surrogatepass") if _encoding_of(data) else data


def utf8_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of an open file in UTF-8 without a mark; one at a time, except from another encoding.

    Raises:
        DataError: it is not text in the encoding of its mark.
    """
    head = file.read(_SAMPLE)
    file.seek(0)
    if _encoding_of(head) in (None, "utf-8-sig"):
        file.seek(len(MARK.encode()) if head.startswith(MARK.encode()) else 0)
        yield from file
    else:
        yield from decode(file.read()).encode("utf-8", "surrogatepass").splitlines(keepends=True)


def _encoding_of(data: bytes) -> str | None:
    """The encoding that the bytes show by themselves; None where they do not."""
    for mark, known in _MARKS:
        if data.startswith(mark):
            return known
    sample = data[: _SAMPLE & ~1]
    if len(data) % 2 or len(sample) < 4:
        return None
    low, high = sample[::2], sample[1::2]
    if high.count(0) > 0.9 * len(high) and not low.count(0):
        return "utf-16-le"
    if low.count(0) > 0.9 * len(low) and not high.count(0):
        return "utf-16-be"
    return None
