"""Width and height of a picture from the first bytes of its file."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from flowloom.data.prepare.items import Content, LocalFile
from flowloom.errors import ImageError

FIRST_HEAD = 2**15
"""Bytes asked for at first; nearly every header ends within them."""
LONGEST_HEAD = 2**26
_ORIENTATION = 0x0112
_BROKEN = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


def measure(content: Content) -> tuple[int, int]:
    """(width, height) of the picture as it is shown, from as little of it as tells.

    Raises:
        ImageError: it is no picture, or its header is damaged.
    """
    if isinstance(content, LocalFile):
        return image_size(Path(content.key))
    length = FIRST_HEAD
    while True:
        head = content.head(length)
        try:
            return image_size(head)
        except ImageError:
            if len(head) < length or length >= LONGEST_HEAD:
                raise
        length *= 8


def image_size(source: bytes | Path) -> tuple[int, int]:
    """(width, height) with EXIF's orientation applied, from the header.

    Raises:
        ImageError: there is no header that says so.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            turned = _orientation(image) >= 5
    except _BROKEN as error:
        raise ImageError(f"not readable as a picture: {_reason(error)}") from error
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    """1 to 8; from 5 on the picture lies on its side. Pillow's own `getexif` may decode all of a PNG."""
    data = image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    exif.load(data)
    value = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no known format"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error)
