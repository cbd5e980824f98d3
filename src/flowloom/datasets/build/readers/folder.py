"""A folder of images, with subfolders, and captions in files beside the images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from flowloom.datasets.build.items import (
    JUNK,
    CaptionRule,
    Item,
    LocalFile,
    OpenedSource,
    ReaderOutput,
    Remark,
    Unusable,
    file_stamp,
    name_problem,
    reason_of,
    shown,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import PairRule, pair, split_suffix
from flowloom.errors import DataError
from flowloom.image_suffixes import MEDIA_SUFFIXES

OWN_FOLDERS = frozenset((".uploads",))
"""Hidden folders that the studio creates."""


def is_empty_file(file: LocalFile) -> bool:
    """True if it has no bytes."""
    return file.stamp.startswith("0:")


def open_folder(folder: Path, options: BuildOptions) -> OpenedSource:
    """The images below `folder`."""
    root = (options.root or folder).resolve()
    rule = PairRule(options.caption_suffixes, with_videos=options.with_videos)
    return OpenedSource("folder", root, _walk(ImageFolder(folder.resolve(), root, rule), options))


class ImageFolder:
    """A folder below the root, and the rule that pairs its images with captions."""

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


def _walk(top: ImageFolder, options: BuildOptions) -> Iterator[ReaderOutput]:
    """Depth first, by name; an explicit stack, because folders may be nested deeper than Python recurses."""
    caption_rule = options.caption_rule
    pending = [str(top.folder)]
    while pending:
        path = pending.pop()
        files, folders, skipped = list_folder(path, top.root)
        yield from skipped
        yield from items_of(ImageFolder(Path(path), top.root, top.rule), files, caption_rule)
        pending += sorted(folders, reverse=True)


def list_folder(folder: str, root: Path) -> tuple[dict[str, LocalFile], list[str], list[Unusable | Remark]]:
    """Files by name and folders in `folder`, without hidden ones, and the entries that were skipped."""
    files: dict[str, LocalFile] = {}
    folders: list[str] = []
    skipped: list[Unusable | Remark] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in JUNK:
                    skipped += _hidden(entry)
                    continue
                match _read_entry(entry, root):
                    case LocalFile() as file:
                        files[entry.name] = file
                    case str() as path:
                        folders.append(path)
                    case Unusable() | Remark() as problem:
                        skipped.append(problem)
                    case None:
                        pass
    except OSError as error:
        skipped.append(Unusable(shown(folder), f"cannot be listed: {reason_of(error)}"))
    return files, folders, skipped


def _hidden(entry: os.DirEntry[str]) -> list[Unusable | Remark]:
    """A remark on a hidden folder or image, which the user may miss; `._a.png` of macOS is not an image."""
    is_image = split_suffix(entry.name)[1] in MEDIA_SUFFIXES and not entry.name.startswith("._")
    is_folder = entry.name not in OWN_FOLDERS and entry.is_dir(follow_symlinks=False)
    return (
        [Remark(shown(entry.path), "not read: hidden, or left behind by a system")]
        if is_image or is_folder
        else []
    )


def _read_entry(entry: os.DirEntry[str], root: Path) -> LocalFile | str | Unusable | Remark | None:
    """A file, the path of a folder, or a problem; None for an entry that is ignored."""
    is_image = split_suffix(entry.name)[1] in MEDIA_SUFFIXES
    try:
        if entry.is_symlink():
            return _link(entry, root, is_image)
        if entry.is_dir():
            return entry.path
        if entry.is_file():
            return LocalFile(entry.path, file_stamp(entry.stat()))
    except OSError as error:
        return Unusable(shown(entry.path), reason_of(error)) if is_image else None
    return Unusable(shown(entry.path), "not a file") if is_image else None


def _link(entry: os.DirEntry[str], root: Path, is_image: bool) -> LocalFile | Unusable | Remark | None:
    """Links to folders are not followed: a target below the root is read anyway, and a loop would not end."""
    try:
        target = Path(entry.path).resolve(strict=True)
    except (OSError, RuntimeError):
        return Unusable(shown(entry.path), "a broken or circular link") if is_image else None
    if not target.is_relative_to(root):
        reason = f"a link out of {root}, which training does not follow: pass a folder above both as --root"
        return Unusable(shown(entry.path), reason) if is_image or target.is_dir() else None
    if target.is_dir():
        return Remark(shown(entry.path), "a link to a folder below the root, which is read directly")
    return LocalFile(entry.path, file_stamp(target.stat()))


def items_of(
    folder: ImageFolder, files: dict[str, LocalFile], rule: CaptionRule, repeats: int = 1
) -> Iterator[ReaderOutput]:
    """The images among the `files` of `folder`."""
    for name in files:
        suffix = split_suffix(name)[1]
        if not folder.rule.is_media(suffix) and suffix not in folder.rule.suffixes:
            yield Remark(
                shown(folder.prefix + name), f"not an image or caption file ({suffix or 'no extension'})"
            )
    for paired in pair(files, folder.prefix, folder.rule, is_empty_file):
        if not isinstance(paired, tuple):
            yield paired
            continue
        name, image, sidecar = paired
        filename = folder.prefix + name
        reason = name_problem(filename)
        if reason:
            yield Unusable(shown(filename), reason)
        else:
            yield Item(shown(filename), filename, image, sidecar=sidecar, rule=rule, repeats=repeats)
