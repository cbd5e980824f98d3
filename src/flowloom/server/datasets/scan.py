"""Scan the folder or JSONL of a dataset: names and times first, then the content that changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from flowloom.data.images.headers import image_size
from flowloom.data.row_checks import BadRow, parse
from flowloom.datasets.build.items import JUNK, Unusable, name_problem, reason_of, shown
from flowloom.datasets.build.pairs import PairRule, pair
from flowloom.datasets.build.pairs import folded as spelled_alike
from flowloom.datasets.captions.formats import SUFFIXES, caption_of_row, read_caption, version_of
from flowloom.datasets.captions.jsonl import MAX_LINE_BYTES
from flowloom.errors import ImageError

AT_ONCE = 500
"""Number of images in a batch."""
_RULE = PairRule(SUFFIXES)


class Row(NamedTuple):
    """An image of a dataset, as stored in the index."""

    item: str
    """Path in the folder, or number of the line."""
    position: int
    file: str
    """File name as training uses it."""
    stamp: str
    """Changes with the image or its caption."""
    size: int | None
    """Bytes."""
    changed: float | None
    width: int | None
    height: int | None
    caption: str
    folded: str
    """The caption in the form that is searched."""
    version: str
    is_tags: bool
    sidecar: str
    """Path of the caption file in the folder."""
    problem: str
    """Problem of its name, location, line or caption."""
    damage: str = ""
    """Reason why the image itself cannot be read."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An image and its caption file, not opened yet."""

    item: str
    sidecar: str
    stamp: str
    size: int
    changed: float
    problem: str = ""


def folded(caption: str) -> str:
    """`caption` in the form that is searched: case-folded, with commas around each tag."""
    parts = caption.casefold().replace("\n", ",").split(",")
    return f",{','.join(part.strip() for part in parts)},"


def seen_in(top: Path) -> Iterator[list[Seen]]:
    """All images below `top`, in batches.

    Hidden files, links to folders and links that lead out of `top` are skipped.
    """
    batch: list[Seen] = []
    for prefix, names in _folders(top):
        # Names that belong together are equal up to their first dot, and neighbours in the order.
        for _, group in groupby(names, key=_stem):
            batch += _images(top, prefix, list(group))
            if len(batch) >= AT_ONCE:
                yield batch
                batch = []
    yield batch


def _folders(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder below `top`, as a prefix of names, with its files."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        names: list[str] = []
        try:
            with os.scandir(top / prefix) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.lower() in JUNK:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{prefix}{entry.name}/")
                    elif not entry.is_symlink() or _leads_within(entry.path, top):
                        names.append(entry.name)
        except OSError:
            continue  # it was deleted, or is not readable
        yield prefix, sorted(names, key=lambda name: (_stem(name), name))


def _leads_within(path: str, top: Path) -> bool:
    try:
        target = Path(path).resolve(strict=True)
    except (OSError, RuntimeError):
        return False
    return target.is_relative_to(top) and target.is_file()


def _images(top: Path, prefix: str, names: list[str]) -> Iterator[Seen]:
    """The images among `names`, all of one stem, paired like `flowloom dataset build` does."""
    by_shown = {shown(prefix + name): name for name in names}
    for found in pair(
        {name: name for name in names}, prefix, _RULE, lambda name: _is_empty(top / prefix / name)
    ):
        if isinstance(found, tuple):
            name, _, sidecar = found
            yield from seen_one(top, prefix + name, prefix + sidecar if sidecar else "")
        elif isinstance(found, Unusable):
            yield from seen_one(top, prefix + by_shown[found.where], "", found.reason)
        elif found.text.startswith("left out"):
            yield from seen_one(top, prefix + by_shown[found.where], "", found.text)


def _stem(name: str) -> str:
    return spelled_alike(name.partition(".")[0])


def _is_empty(path: Path) -> bool:
    try:
        return not path.stat().st_size
    except OSError:
        return True  # it was deleted


def seen_one(top: Path, item: str, sidecar: str, problem: str = "") -> Iterator[Seen]:
    """The image `item` in its current state; nothing if it was deleted."""
    if name_problem(item):
        return  # not representable in JSON; lint reports it
    try:
        status = (top / item).stat()
        sidecar_stamp = _stamp((top / sidecar).stat()) if sidecar else ""
    except OSError:
        return  # it was deleted
    stamp = f"{_stamp(status)}|{sidecar}|{sidecar_stamp}|{problem}"
    yield Seen(item, sidecar, stamp, status.st_size, status.st_mtime, problem)


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}"


def opened(top: Path, seen: Seen) -> Row:
    """The row of an image with its caption, but without its size in pixels."""
    caption = read_caption(top, seen.sidecar)
    return Row(
        item=seen.item,
        position=0,
        file=seen.item,
        stamp=seen.stamp,
        size=seen.size,
        changed=seen.changed,
        width=None,
        height=None,
        caption=caption.text,
        folded=folded(caption.text),
        version=caption.version,
        is_tags=caption.is_tags,
        sidecar=seen.sidecar,
        problem=seen.problem or caption.problem,
    )


def pixels_of(path: Path) -> tuple[int, int, str]:
    """Width, height and problem of the image at `path`; 0 and 0 if it cannot be read."""
    try:
        return (*image_size(path), "")
    except ImageError as error:
        return 0, 0, str(error)
    except OSError as error:
        return 0, 0, reason_of(error)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """The non-empty lines of a JSONL with their numbers from 1; overlong ones are cut."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            is_complete = line.endswith(b"\n")
            while not is_complete and (rest := file.readline(MAX_LINE_BYTES)):
                is_complete = rest.endswith(b"\n")
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def row_of(number: int, line: bytes) -> Row:
    """The row of a JSONL's line; its problem is the reason why training leaves it out."""
    row = parse(line)
    caption = caption_of_row(row.fields, version_of(line))
    width, height = (_side(row.fields.get(name)) for name in ("width", "height"))
    return Row(
        item=str(number),
        position=number,
        file=row.filename,
        stamp="",
        size=None,
        changed=None,
        width=width,
        height=height,
        caption=caption.text,
        folded=folded(caption.text),
        version=caption.version,
        is_tags=caption.is_tags,
        sidecar="",
        problem=row.reason if isinstance(row, BadRow) else "",
    )


def _side(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else 0
