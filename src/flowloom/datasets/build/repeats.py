"""Decide whether numbers at the start of folder names are Kohya's repeats."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowloom.datasets.build.items import JUNK, shown
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.kohya import REPEATED, TRAINED
from flowloom.image_suffixes import IMAGE_SUFFIXES

MAX_REPEATS = 200
"""Larger numbers are years, resolutions or dates."""
OTHER_FOLDERS = frozenset(("log", "logs", "mask", "masks", "model", "models", "sample", "samples"))
"""Folders that trainers make beside the images."""


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `folder` down, as a prefix of names, with its files; links are not followed."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        files: list[str] = []
        folders: list[str] = []
        for entry in _entries(folder / prefix):
            (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
        yield prefix, files
        pending += [f"{prefix}{name}/" for name in sorted(folders, reverse=True)]


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in JUNK]
    except OSError:
        return []


@dataclass(frozen=True)
class KohyaVerdict:
    """The decision about a folder, with its reason."""

    is_kohya: bool = False
    is_ambiguous: bool = False
    why: str = ""


def kohya_verdict(folder: Path) -> KohyaVerdict:
    """The verdict on `folder`, or on its folder `img`."""
    if any(_numbers(folder / TRAINED)):
        folder = folder / TRAINED
    names = [
        entry.name
        for entry in _entries(folder)
        if entry.is_dir(follow_symlinks=False)
        and entry.name.lower() not in OTHER_FOLDERS
        and _holds_images(Path(entry.path))
    ]
    names.sort()
    numbers = [_repeats(name) for name in names]
    if not any(number is not None for number in numbers):
        return KohyaVerdict()
    implausible = [name for name in names if _repeats(name) == 0]
    if implausible:
        return KohyaVerdict(why=f"not Kohya's repeats: {shown(implausible[0])} has no plausible number")
    return _judged(folder, names, [number for number in numbers if number])


def _judged(folder: Path, names: list[str], numbers: list[int]) -> KohyaVerdict:
    """The verdict on folders, some of which have plausible numbers."""
    if len(numbers) < len(names):
        others = [shown(name) for name in names if not _repeats(name)]
        return KohyaVerdict(
            is_ambiguous=True, why=f"some folders are named like Kohya's repeats, but not {others[0]}"
        )
    if any(split_suffix(entry.name)[1] in IMAGE_SUFFIXES for entry in _entries(folder) if entry.is_file()):
        return KohyaVerdict(
            is_ambiguous=True, why="there are images beside folders that are named like Kohya's repeats"
        )
    if len(numbers) > 1 and sorted(numbers) == [*range(1, len(numbers) + 1)]:
        return KohyaVerdict(
            is_ambiguous=True,
            why="the numbers of its folders may be Kohya's repeats, or just count the folders",
        )
    return KohyaVerdict(is_kohya=True, why="every folder is named REPEATS_NAME, like Kohya's")


def _numbers(folder: Path) -> Iterator[int]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False) and (number := _repeats(entry.name)):
            yield number


def _repeats(name: str) -> int | None:
    """The number of repeats in a folder's name; 0: not plausible; None: no number."""
    match = REPEATED.fullmatch(name)
    if not match:
        return None
    digits = match[1]
    if digits == "0":
        return None  # Kohya leaves it out
    is_plausible = digits.isascii() and not (len(digits) > 1 and digits[0] == "0") and len(digits) < 4
    return int(digits) if is_plausible and 0 < int(digits) <= MAX_REPEATS else 0


def _holds_images(folder: Path) -> bool:
    return any(split_suffix(name)[1] in IMAGE_SUFFIXES for _, names in walk(folder) for name in names)
