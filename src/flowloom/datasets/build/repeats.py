"""Whether numbers before the names of folders are Kohya's repeats."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flowloom.datasets.build.items import JUNK, PICTURES, shown
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.readers.kohya import REPEATED, TRAINED

MAX_REPEATS = 200
"""More are a year, a resolution or a date at the start of a folder's name."""
BESIDE_KOHYA = frozenset(("log", "logs", "mask", "masks", "model", "models", "sample", "samples"))
"""Folders that trainers make beside the images."""


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `folder` down, as a prefix of names, with the files in it; links are not followed."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        files: list[str] = []
        folders: list[str] = []
        for entry in _entries(folder / prefix):
            (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
        yield prefix, files
        waiting += [f"{prefix}{name}/" for name in sorted(folders, reverse=True)]


def _entries(folder: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [one for one in entries if one.name[0] != "." and one.name.lower() not in JUNK]
    except OSError:
        return []


@dataclass(frozen=True)
class Verdict:
    """Whether the numbers before the names of folders are Kohya's repeats."""

    is_kohya: bool = False
    is_unclear: bool = False
    why: str = ""


def kohya_verdict(folder: Path) -> Verdict:
    """Whether `folder`, or its folder `img`, holds Kohya's folders."""
    if any(_numbers(folder / TRAINED)):
        folder = folder / TRAINED
    holding = [
        entry.name
        for entry in _entries(folder)
        if entry.is_dir(follow_symlinks=False)
        and entry.name.lower() not in BESIDE_KOHYA
        and _holds_images(Path(entry.path))
    ]
    numbers = [_repeats(name) for name in sorted(holding)]
    if not any(number is not None for number in numbers):
        return Verdict()
    wrong = [name for name in sorted(holding) if _repeats(name) == 0]
    if wrong:
        return Verdict(why=f"not Kohya's repeats: {shown(wrong[0])} has no plausible number")
    return _judged(folder, sorted(holding), [number for number in numbers if number])


def _judged(folder: Path, holding: list[str], numbers: list[int]) -> Verdict:
    """The verdict on folders of which some have plausible numbers."""
    if len(numbers) < len(holding):
        others = [shown(name) for name in holding if not _repeats(name)]
        return Verdict(is_unclear=True, why=f"some folders are named as Kohya's repeats, but not {others[0]}")
    if any(split_suffix(entry.name)[1] in PICTURES for entry in _entries(folder) if entry.is_file()):
        return Verdict(is_unclear=True, why="images lie beside folders that are named as Kohya's repeats")
    if len(numbers) > 1 and sorted(numbers) == [*range(1, len(numbers) + 1)]:
        return Verdict(
            is_unclear=True, why="the numbers of its folders may be Kohya's repeats, or count them"
        )
    return Verdict(is_kohya=True, why="every folder is named REPEATS_NAME, as Kohya's")


def _numbers(folder: Path) -> Iterator[int]:
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False) and (number := _repeats(entry.name)):
            yield number


def _repeats(name: str) -> int | None:
    """The plausible number of repeats in a folder's name; 0: not plausible; None: there is none."""
    found = REPEATED.fullmatch(name)
    if not found:
        return None
    digits = found[1]
    if digits == "0":
        return None  # Kohya leaves it out
    is_plausible = digits.isascii() and not (len(digits) > 1 and digits[0] == "0") and len(digits) < 4
    return int(digits) if is_plausible and 0 < int(digits) <= MAX_REPEATS else 0


def _holds_images(folder: Path) -> bool:
    return any(split_suffix(name)[1] in PICTURES for _, names in walk(folder) for name in names)
