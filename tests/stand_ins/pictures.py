"""Small pictures of every kind as files in memory."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

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
    """A white picture, stored as 120 x 60, its upper left corner black, with an EXIF orientation."""
    picture = Image.new("RGB", (120, 60), "white")
    picture.paste("black", (0, 0, 60, 30))
    exif = picture.getexif()
    exif[ORIENTATION] = orientation
    return encoded(picture, kind, exif=exif)


@lru_cache
def photo(seed: int, width: int, height: int) -> Image.Image:
    """Clouds with the spectrum of photographs, and discs with sharp edges."""
    draw = np.random.default_rng(seed)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequencies[0, 0] = 1
    shared = np.fft.rfft2(draw.standard_normal((height, width)))
    planes = []
    for _ in range(3):
        mixed = 0.9 * shared + 0.3 * np.fft.rfft2(draw.standard_normal((height, width)))
        plane = np.fft.irfft2(mixed / frequencies**1.35, s=(height, width))
        planes.append((plane - plane.mean()) / plane.std())
    levels = np.stack(planes, -1) * 50 + 120
    rows, columns = np.mgrid[0:height, 0:width]
    for _ in range(25):
        y, x, radius = draw.integers(height), draw.integers(width), draw.integers(5, max(6, height // 6))
        levels[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] += draw.uniform(-60, 60, 3)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
