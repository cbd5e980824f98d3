"""Boxes of ISO base media files (ISO/IEC 14496-12): the containers of AVIF, JPEG 2000 and JPEG XL."""

from __future__ import annotations

from collections.abc import Iterator

from flowloom.data.images.byte_reader import ByteReader
from flowloom.errors import ImageError

MAX_BOXES = 1000
"""In one box; a file with more is damaged."""
TO_THE_END = 2**62
ANGLES = {0: 1, 1: 8, 2: 3, 3: 6}
"""EXIF orientation for each `irot`, in anticlockwise quarter turns."""
MIRRORED = {1: (4, 2), 8: (5, 7), 3: (2, 4), 6: (7, 5)}
"""EXIF orientation for each rotation followed by `imir`, by its axis."""


def boxes(reader: ByteReader, end: int = TO_THE_END) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each box up to `end`; the reader is at the contents of the box."""
    for _ in range(MAX_BOXES):
        if reader.position >= end:
            return
        start = reader.position
        length, kind = reader.number(4), reader.take(4)
        if length == 1:
            length = reader.number(8)
        stop = start + length if length else end
        if not reader.position <= stop <= end:
            raise ImageError(f"not readable as an image: a box {kind!r} of {length} bytes")
        yield kind, stop
        reader.position = stop
    raise ImageError(f"not readable as an image: more than {MAX_BOXES} boxes")


def enter(reader: ByteReader, *path: tuple[bytes, ...]) -> tuple[bytes, int]:
    """Move to the contents of a nested box: each step names the kinds of the next box to enter.

    Returns:
        Kind and end of the last box.

    Raises:
        ImageError: a box is missing.
    """
    found, end = b"", TO_THE_END
    for kinds in path:
        for kind, stop in boxes(reader, end):
            if kind in kinds:
                found, end = kind, stop
                break
        else:
            raise ImageError(f"not readable as an image: no box {kinds[0]!r}")
    return found, end


def primary_image(reader: ByteReader) -> tuple[int, int, int]:
    """Stored width and height and the EXIF orientation of an AVIF file's primary item."""
    _, end = enter(reader, (b"meta",))
    reader.skip(4)
    item, properties, owned = 1, [], {}
    for kind, stop in boxes(reader, end):
        if kind == b"pitm":
            item = reader.number(4 if _version(reader) else 2)
        elif kind == b"iprp":
            properties, owned = _properties(reader, stop)
    chosen = dict(properties[i - 1] for i in owned.get(item, ()) if 0 < i <= len(properties))
    if b"ispe" not in chosen:
        raise ImageError("not readable as an image: an AVIF without a size")
    width, height = (int.from_bytes(chosen[b"ispe"][i : i + 4]) for i in (4, 8))
    orientation = ANGLES[chosen.get(b"irot", b"\0")[0] & 3]
    if b"imir" in chosen:
        orientation = MIRRORED[orientation][chosen[b"imir"][0] & 1]
    return width, height, orientation


def _version(reader: ByteReader) -> int:
    version = reader.number(1)
    reader.skip(3)
    return version


def _properties(reader: ByteReader, end: int) -> tuple[list[tuple[bytes, bytes]], dict[int, list[int]]]:
    """Kind and first 12 bytes of each property, and each item's property numbers, from 1."""
    properties: list[tuple[bytes, bytes]] = []
    owned: dict[int, list[int]] = {}
    for kind, stop in boxes(reader, end):
        if kind == b"ipco":
            properties = [
                (inner, reader.take(min(inner_stop - reader.position, 12)).ljust(12, b"\0"))
                for inner, inner_stop in boxes(reader, stop)
            ]
        elif kind == b"ipma":
            owned |= _associations(reader)
    return properties, owned


def _associations(reader: ByteReader) -> dict[int, list[int]]:
    version = reader.number(1)
    is_wide = reader.number(3) & 1
    owned: dict[int, list[int]] = {}
    for _ in range(min(reader.number(4), MAX_BOXES)):
        item = reader.number(4 if version else 2)
        count = reader.number(1)
        owned[item] = [
            reader.number(2) & 0x7FFF if is_wide else reader.number(1) & 0x7F for _ in range(count)
        ]
    return owned
