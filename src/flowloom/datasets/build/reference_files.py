"""Reference images for models that edit: files of equal names in other folders, like control images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flowloom.datasets.build.items import Item, OpenedSource, ReaderOutput, Remark, Unusable, shown
from flowloom.errors import DataError
from flowloom.image_suffixes import IMAGE_SUFFIXES

REFERENCE = "not a row: a reference image by its folder"
_NUMBERED = re.compile(r"(.+)_(\d+)")
"""musubi-tuner's names of several control images: `fox_0.png`, `fox_1.png`."""


def with_references(opened: OpenedSource, folders: Sequence[Path]) -> OpenedSource:
    """`opened`, each image with the files of its name in `folders`; unchanged without folders.

    Raises:
        DataError: a folder is missing, or is not below the folder that file names are relative to.
    """
    if not folders:
        return opened
    root = opened.root
    if root is None:
        raise DataError("--references needs a source whose images are files below one folder.")
    places = [_place(folder, root.resolve()) for folder in folders]
    return replace(opened, items=_read(opened.items, places, [_names(root, place) for place in places]))


def _place(folder: Path, root: Path) -> str:
    """`folder` relative to `root`, with a slash at its end."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. It is named by --references.")
    if folder == root or not folder.is_relative_to(root):
        raise DataError(f"{folder} is not below {root}: set --root to a folder that has both.")
    return f"{folder.relative_to(root).as_posix()}/"


def _names(root: Path, place: str) -> dict[str, list[str]]:
    """The images below a folder by their path in it, without suffix and number; in order of numbers."""
    numbered: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for path in sorted((root / place).rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            name = path.relative_to(root).as_posix()
            stem = path.relative_to(root / place).with_suffix("").as_posix()
            numbered[stem].append((-1, name))
            if match := _NUMBERED.fullmatch(stem):
                numbered[match[1]].append((int(match[2]), name))
    return {stem: [name for _, name in sorted(found)] for stem, found in numbered.items()}


def _read(
    items: Iterator[ReaderOutput], places: Sequence[str], names: Sequence[dict[str, list[str]]]
) -> Iterator[ReaderOutput]:
    for item in items:
        if not isinstance(item, Item):
            is_reference = isinstance(item, Unusable) and item.where.startswith(tuple(places))
            yield Remark(item.where, REFERENCE) if is_reference else item
        elif item.filename.startswith(tuple(places)):
            yield Remark(item.where, REFERENCE)
        elif found := [name for folder in names for name in _of(item.filename, folder)]:
            yield replace(item, references=tuple(found))
        else:
            where = " or ".join(place.rstrip("/") for place in places)
            yield Unusable(item.where, f"it has no reference image: no file of its name in {shown(where)}")


def _of(filename: str, names: dict[str, list[str]]) -> list[str]:
    """The references of the image `filename`: its path or the end of it is the same."""
    stem, _, _ = filename.rpartition(".")
    while stem:
        if stem in names:
            return names[stem]
        _, _, stem = stem.partition("/")
    return []
