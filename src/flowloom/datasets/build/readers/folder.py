"""A folder of pictures, nested as one likes, with captions in files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flowloom.datasets.build.items import (
    JUNK,
    PICTURES,
    CaptionRule,
    Found,
    Item,
    LocalFile,
    Reading,
    Remark,
    Unusable,
    file_stamp,
    reason_of,
    shown,
    wrong_name,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import PairRule, pair, split_suffix
from flowloom.errors import DataError

OWN_FOLDERS = frozenset((".uploads",))
"""Hidden folders that the studio makes."""


def is_empty_file(file: LocalFile) -> bool:
    """Whether it has no bytes."""
    return file.stamp.startswith("0:")


def open_folder(folder: Path, options: BuildOptions) -> Reading:
    """The pictures below `folder`."""
    root = (options.root or folder).resolve()
    rule = PairRule(options.caption_suffixes)
    return Reading("folder", root, _walk(Place(folder.resolve(), root, rule), options))


class Place:
    """A folder below the root, and how pictures of it become items."""

    def __init__(self, folder: Path, root: Path, rule: PairRule):
        """
        Raises:
            DataError: the folder is not below the root.
        """
        if not folder.is_relative_to(root):
            raise DataError(f"{folder} is not below {root}, the folder that file names are relative to.")
        self.folder = folder
        self.root = root
        self.rule = rule
        below = folder.relative_to(root).as_posix()
        self.prefix = "" if below == "." else f"{below}/"


def _walk(place: Place, options: BuildOptions) -> Iterator[Found]:
    """Depth first, names in order; a stack of our own, as folders may lie deeper than Python recurses."""
    caption_rule = options.caption_rule
    waiting = [str(place.folder)]
    while waiting:
        folder = waiting.pop()
        files, folders, found = list_folder(folder, place.root)
        yield from found
        below = Place(Path(folder), place.root, place.rule)
        yield from items_of(below, files, caption_rule)
        waiting += sorted(folders, reverse=True)


def list_folder(folder: str, root: Path) -> tuple[dict[str, LocalFile], list[str], list[Unusable | Remark]]:
    """Files by name and folders in `folder`, without hidden ones, and what is wrong there."""
    files: dict[str, LocalFile] = {}
    folders: list[str] = []
    found: list[Unusable | Remark] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in JUNK:
                    found += _hidden(entry)
                    continue
                match _looked_at(entry, root):
                    case LocalFile() as file:
                        files[entry.name] = file
                    case str() as path:
                        folders.append(path)
                    case Unusable() | Remark() as said:
                        found.append(said)
    except OSError as error:
        found.append(Unusable(shown(folder), f"cannot be listed: {reason_of(error)}"))
    return files, folders, found


def _hidden(entry: os.DirEntry[str]) -> list[Unusable | Remark]:
    """A remark on hidden folders and pictures, which somebody may miss; `._a.png` of macOS is no picture."""
    is_picture = split_suffix(entry.name)[1] in PICTURES and not entry.name.startswith("._")
    is_folder = entry.name not in OWN_FOLDERS and entry.is_dir(follow_symlinks=False)
    return (
        [Remark(shown(entry.path), "not read: hidden, or left behind by a system")]
        if is_picture or is_folder
        else []
    )


def _looked_at(entry: os.DirEntry[str], root: Path) -> LocalFile | str | Unusable | Remark | None:
    """A file, the path of a folder, what is wrong with it, or None for what concerns nobody."""
    is_picture = split_suffix(entry.name)[1] in PICTURES
    try:
        if entry.is_symlink():
            return _link(entry, root, is_picture)
        if entry.is_dir():
            return entry.path
        if entry.is_file():
            return LocalFile(entry.path, file_stamp(entry.stat()))
    except OSError as error:
        return Unusable(shown(entry.path), reason_of(error)) if is_picture else None
    return Unusable(shown(entry.path), "not a file") if is_picture else None


def _link(entry: os.DirEntry[str], root: Path, is_picture: bool) -> LocalFile | Unusable | Remark | None:
    """Links to folders are never followed: what they lead to is found by itself, and no loop is entered."""
    try:
        target = Path(entry.path).resolve(strict=True)
    except (OSError, RuntimeError):
        return Unusable(shown(entry.path), "a link to nothing, or in a circle") if is_picture else None
    if not target.is_relative_to(root):
        reason = f"a link out of {root}, which training does not follow: name a folder above both by --root"
        return Unusable(shown(entry.path), reason) if is_picture or target.is_dir() else None
    if target.is_dir():
        return Remark(shown(entry.path), "a link to a folder, read at its own place")
    return LocalFile(entry.path, file_stamp(target.stat()))


def items_of(
    place: Place, files: dict[str, LocalFile], rule: CaptionRule, repeats: int = 1
) -> Iterator[Found]:
    """The pictures among `files` of `place`."""
    for name in files:
        suffix = split_suffix(name)[1]
        if suffix not in PICTURES and suffix not in place.rule.suffixes:
            yield Remark(
                shown(place.prefix + name), f"not an image or caption file ({suffix or 'no extension'})"
            )
    for found in pair(files, place.prefix, place.rule, is_empty_file):
        if not isinstance(found, tuple):
            yield found
            continue
        name, picture, sidecar = found
        filename = place.prefix + name
        reason = wrong_name(filename)
        if reason:
            yield Unusable(shown(filename), reason)
        else:
            yield Item(shown(filename), filename, picture, sidecar=sidecar, rule=rule, repeats=repeats)
