"""Small images of every kind as files in memory."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

from PIL import Image

from benchmarks import decode

ORIENTATION = 0x0112
"""EXIF tag."""
JXL_RED = base64.b64decode(
    "/wpFBgATiAIA6AC1nyAAABUqo4wbvJzr+fJDh8W0jesMbbVtYQljs70wSEg4Q9zNe1DNQwJwBAKwNyjADMUQTQEAlSQA"
)
"""24 x 24 pixels of (220, 30, 20)."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """`image` as a file of Pillow's `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    """A white image, stored as 120 x 60, its upper left corner black, with an EXIF orientation."""
    image = Image.new("RGB", (120, 60), "white")
    image.paste("black", (0, 0, 60, 30))
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return encoded(image, kind, exif=exif)


@lru_cache
def photo(seed: int, width: int, height: int) -> Image.Image:
    """The benchmark's image."""
    return decode.photo(seed, (width, height))
