"""The size of an image from the first bytes of its file, without decoding and without Pillow."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flowloom.data.images import bmff
from flowloom.data.images.byte_reader import ByteReader, NeedMore
from flowloom.errors import ImageError

__all__ = ["Header", "NeedMore", "image_size", "read_header"]

MAGIC = 16
"""Number of bytes that identify the format."""
ORIENTATION = 0x0112
"""EXIF and TIFF tag; widths and heights are 256 and 257."""
JPEG_WITHOUT_LENGTH = frozenset({0xFF00, 0xFF01, 0xFFFF, *range(0xFFD0, 0xFFD9)})
JPEG_FRAMES = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
JPEG_ENDS = frozenset({0xFFD9, 0xFFDA})
"""End of image and start of scan; a frame header comes before them."""
JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
MAX_JUNK = 10_000
"""Bytes and segments before a JPEG's frame; a file with more is damaged."""
MAX_TAGS = 1000
"""In a TIFF directory; a file with more is damaged."""


@dataclass(frozen=True)
class Header:
    """Metadata of an image before it is decoded."""

    kind: str
    """Pillow's name of the format; `JXL` for JPEG XL."""
    width: int
    """As stored, before `orientation`."""
    height: int
    orientation: int = 1
    """EXIF orientation: 1 is upright, 5 to 8 are rotated by a quarter turn."""

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height as shown."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def image_size(source: bytes | BinaryIO | Path) -> tuple[int, int]:
    """Width and height of the image in `source`, with EXIF orientation applied.

    Args:
        source: a file, or the beginning of one.

    Raises:
        NeedMore: `source` ends too early; `.length` bytes are needed. A complete file is damaged then.
        ImageError: not an image of a known format.
    """
    return read_header(source).shown


def read_header(source: bytes | BinaryIO | Path) -> Header:
    """Format, stored size and orientation of the image in `source`; raises like `image_size`."""
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                return read_header(file)
        except OSError as error:
            raise ImageError(f"not readable: {error}") from error
    reader = ByteReader(io.BytesIO(source) if isinstance(source, bytes) else source)
    magic = reader.peek(MAGIC)
    for pattern, read in _KINDS:
        if pattern.match(magic):
            header = read(reader)
            if not (header.width > 0 and header.height > 0):
                raise ImageError(f"not readable as an image: {header.width} x {header.height} pixels")
            return header
    if len(magic) < MAGIC:
        raise NeedMore(len(magic), MAGIC)
    raise ImageError(
        f"not readable as an image: it begins with {magic!r}; known formats are {', '.join(KINDS)}"
    )


def _jpeg(reader: ByteReader) -> Header:
    orientation = 1
    for marker, length in _jpeg_segments(reader):
        if marker in JPEG_FRAMES:
            reader.skip(1)
            height, width = reader.number(2), reader.number(2)
            return Header("JPEG", width, height, orientation)
        if marker == 0xFFE1 and orientation == 1:
            orientation = exif_orientation(reader.take(length))
    raise ImageError("not readable as an image: a JPEG without a frame")


def _jpeg_segments(reader: ByteReader) -> Iterator[tuple[int, int]]:
    """Marker and length of each segment, the reader at its beginning."""
    reader.skip(2)
    for _ in range(MAX_JUNK):
        marker = reader.number(2)
        if marker >> 8 != 0xFF or marker in JPEG_WITHOUT_LENGTH:
            reader.skip(-1)  # junk between segments, or several 0xFF
            continue
        if marker in JPEG_ENDS:
            return
        length = reader.number(2) - 2
        end = reader.position + length
        yield marker, max(length, 0)
        reader.position = end


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block; 1 if it is missing or damaged."""
    reader = ByteReader(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
    try:
        orientation = _tiff_tags(reader).get(ORIENTATION, 1)
    except ImageError:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tiff_tags(reader: ByteReader) -> dict[int, int]:
    """The first integer of each tag in the first directory."""
    order = reader.take(2)
    if order not in (b"II", b"MM"):
        raise ImageError("not readable as an image: no TIFF header")
    reader.order = "little" if order == b"II" else "big"
    is_big = reader.number(2) == 43
    word, counter = (8, 8) if is_big else (4, 2)
    if is_big:
        reader.skip(4)
    reader.position = reader.number(word)
    count = reader.number(counter)
    if count > MAX_TAGS:
        raise ImageError(f"not readable as an image: a TIFF directory of {count} tags")
    tags: dict[int, int] = {}
    for _ in range(count):
        tag, kind = reader.number(2), reader.number(2)
        reader.skip(word)
        end = reader.position + word
        tags[tag] = reader.number({1: 1, 3: 2, 4: 4, 16: word}.get(kind, word))
        reader.position = end
    return tags


def _tiff(reader: ByteReader) -> Header:
    tags = _tiff_tags(reader)
    orientation = tags.get(ORIENTATION, 1)
    return Header("TIFF", tags.get(256, 0), tags.get(257, 0), orientation if 1 <= orientation <= 8 else 1)


def _png(reader: ByteReader) -> Header:
    reader.skip(12)
    if reader.take(4) != b"IHDR":
        raise ImageError("not readable as an image: a PNG without a header")
    width, height = reader.number(4), reader.number(4)
    reader.skip(5 + 4)
    while True:  # the orientation is used only if it comes before the pixels, as in browsers
        length, kind = reader.number(4), reader.take(4)
        if kind in (b"IDAT", b"IEND"):
            return Header("PNG", width, height)
        if kind == b"eXIf":
            return Header("PNG", width, height, exif_orientation(reader.take(length)))
        reader.skip(length + 4)


def _gif(reader: ByteReader) -> Header:
    reader.order = "little"
    reader.skip(6)
    return Header("GIF", reader.number(2), reader.number(2))


def _bmp(reader: ByteReader) -> Header:
    reader.order = "little"
    reader.skip(14)
    if reader.number(4) == 12:
        return Header("BMP", reader.number(2), reader.number(2))
    width, height = reader.number(4), reader.number(4)
    return Header("BMP", width, min(height, 2**32 - height))  # negative if rows are stored from the top down


def _webp(reader: ByteReader) -> Header:
    reader.order = "little"
    reader.skip(4)
    end = 8 + reader.number(4)
    reader.skip(4)
    kind, _ = reader.take(4), reader.skip(4)
    if kind == b"VP8 ":
        reader.skip(6)
        return Header("WEBP", reader.number(2) & 0x3FFF, reader.number(2) & 0x3FFF)
    if kind == b"VP8L":
        reader.skip(1)
        bits = reader.number(4)
        return Header("WEBP", 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    if kind != b"VP8X":
        raise ImageError(f"not readable as an image: a WebP that begins with {kind!r}")
    has_exif = bool(reader.number(4) & 8)
    width, height = 1 + reader.number(3), 1 + reader.number(3)
    return Header("WEBP", width, height, _webp_orientation(reader, end) if has_exif else 1)


def _webp_orientation(reader: ByteReader, end: int) -> int:
    """The orientation in the EXIF chunk after the pixels, which are skipped."""
    while reader.position < end:
        kind, length = reader.take(4), reader.number(4)
        if kind == b"EXIF":
            return exif_orientation(reader.take(length))
        reader.skip(length + length % 2)
    return 1


def _avif(reader: ByteReader) -> Header:
    return Header("AVIF", *bmff.primary_image(reader))


def _jpeg2000(reader: ByteReader) -> Header:
    if reader.peek(4) == b"\xff\x4f\xff\x51":
        reader.skip(8)
        right, bottom, left, top = (reader.number(4) for _ in range(4))
        return Header("JPEG2000", right - left, bottom - top)
    bmff.enter(reader, (b"jp2h",), (b"ihdr",))
    height, width = reader.number(4), reader.number(4)
    return Header("JPEG2000", width, height)


def _portable(reader: ByteReader) -> Header:
    """Width and height are text, with comments in between."""
    text = reader.peek(1000)
    number = rb"(?:\s+|#[^\n\r]*[\n\r])+(\d{1,9})(?=[\s#])"
    match = re.match(rb"P." + number + number, text)
    if match is None:
        if len(text) < 1000:
            raise NeedMore(len(text), 1000)
        raise ImageError("not readable as an image: a PPM without a size")
    return Header("PPM", int(match[1]), int(match[2]))


def _qoi(reader: ByteReader) -> Header:
    reader.skip(4)
    return Header("QOI", reader.number(4), reader.number(4))


def _jxl(reader: ByteReader) -> Header:
    """ISO/IEC 18181-1: SizeHeader, then the beginning of ImageMetadata."""
    if reader.peek(2) != b"\xff\x0a" and bmff.enter(reader, (b"jxlc", b"jxlp"))[0] == b"jxlp":
        reader.skip(4)  # the index of this part of the codestream
    if reader.take(2) != b"\xff\x0a":
        raise ImageError("not readable as an image: a JPEG XL file without a codestream")
    reader.order = "little"
    bits = _Bits(reader)
    in_eights = bits.take(1)
    height = _jxl_side(bits, in_eights)
    ratio = bits.take(3)
    if ratio:
        across, down = JXL_RATIOS[ratio - 1]
        width = height * across // down
    else:
        width = _jxl_side(bits, in_eights)
    is_default = bits.take(1)
    orientation = 1 + bits.take(3) if not is_default and bits.take(1) else 1
    return Header("JXL", width, height, orientation)


def _jxl_side(bits: _Bits, in_eights: int) -> int:
    if in_eights:
        return 8 * (1 + bits.take(5))
    return 1 + bits.take((9, 13, 18, 30)[bits.take(2)])


class _Bits:
    """The bits of a stream, lowest first."""

    def __init__(self, reader: ByteReader):
        self._reader = reader
        self._value = 0
        self._left = 0

    def take(self, count: int) -> int:
        while self._left < count:
            self._value |= self._reader.number(1) << self._left
            self._left += 8
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return taken


_KINDS: list[tuple[re.Pattern[bytes], Callable[[ByteReader], Header]]] = [
    (re.compile(pattern, re.DOTALL), read)
    for pattern, read in (
        (rb"\xff\xd8\xff", _jpeg),
        (rb"\x89PNG\r\n\x1a\n", _png),
        (rb"RIFF....WEBP", _webp),
        (rb"....ftyp(?:avif|avis|mif1|msf1)", _avif),
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", _jxl),
        (rb"GIF8[79]a", _gif),
        (rb"BM", _bmp),
        (rb"II[*+]\x00|MM\x00[*+]", _tiff),
        (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", _jpeg2000),
        (rb"P[1-6][\s#]", _portable),
        (rb"qoif", _qoi),
    )
]
KINDS = ("JPEG", "PNG", "WebP", "AVIF", "JPEG XL", "GIF", "BMP", "TIFF", "JPEG 2000", "PPM", "QOI")
