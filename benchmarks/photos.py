"""Synthetic photographs with realistic sizes and decoding cost, with their JSONL."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

SHAPES = ((1600, 1200), (1200, 1600))
QUALITY = 90
GRAIN = 5.0
"""Of noise, in levels: at this quality it makes files of about 430 kB."""
NUM_DRAWN = 16
"""Number of different images; the rest repeat them with other bytes at the end."""


def write_photos(folder: Path, count: int) -> Path:
    """`count` JPEGs of 1600 x 1200 or 1200 x 1600 in `folder`; the path of their JSONL."""
    drawn = [_photo(number) for number in range(min(NUM_DRAWN, count))]
    rows = []
    for number in range(count):
        name = f"{number:05d}.jpg"
        # Bytes after the end of a JPEG are ignored, so that all files differ.
        (folder / name).write_bytes(drawn[number % len(drawn)] + number.to_bytes(4, "big"))
        width, height = SHAPES[number % len(drawn) % 2]
        row = {"filename": name, "caption_or_tags": f"photo {number}", "width": width, "height": height}
        rows.append(row | {"is_tag_based": False, "is_url_based": False, "loss_weight": 1.0})
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _photo(number: int) -> bytes:
    width, height = SHAPES[number % 2]
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, size=(9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = draw.normal(0, GRAIN, size=(height, width, 1)).astype(np.float32)
    target = io.BytesIO()
    picture = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
    picture.save(target, "JPEG", quality=QUALITY)
    return target.getvalue()
