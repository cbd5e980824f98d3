"""Kohya's folders: images in `10_name of class` are repeated ten times; the name is the default caption."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flowloom.datasets.build.items import CaptionRule, Item, OpenedSource, ReaderOutput, Remark, shown
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import PairRule
from flowloom.datasets.build.readers.folder import ImageFolder, items_of, list_folder

REPEATED = re.compile(r"(\d+)_(.*)", re.DOTALL)
TRAINED, REGULARISING = "img", "reg"
"""Names that Kohya's GUI gives to the two folders of a project."""


def open_kohya(folder: Path, options: BuildOptions) -> OpenedSource:
    """The images of Kohya's folders in `folder`, or in its `img` and `reg`."""
    root = (options.root or folder).resolve()
    return OpenedSource("kohya", root, _read(folder.resolve(), root, options))


def _read(folder: Path, root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    if not (folder / TRAINED).is_dir():
        yield from _read_repeated(folder, root, options)
        return
    for other in sorted(list_folder(str(folder), root)[1]):
        if Path(other).name not in (TRAINED, REGULARISING):
            yield Remark(shown(other), f"not read: Kohya reads {TRAINED} and {REGULARISING} of a project")
    yield from _read_repeated(folder / TRAINED, root, options)
    if (folder / REGULARISING).is_dir():
        for item in _read_repeated(folder / REGULARISING, root, options):
            yield replace(item, loss_weight=options.reg_weight) if isinstance(item, Item) else item


def _read_repeated(folder: Path, root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    pair_rule = PairRule(options.caption_suffixes, is_shared=True, with_videos=options.with_videos)
    files, folders, skipped = list_folder(str(folder), root)
    yield from skipped
    for name in files:
        yield Remark(shown(name), "left out: it is outside the numbered folders that Kohya reads")
    for path in sorted(folders):
        numbered = REPEATED.fullmatch(Path(path).name)
        if not numbered or int(numbered[1]) == 0:
            yield Remark(shown(path), "left out: Kohya reads folders named REPEATS_NAME only")
            continue
        numbered_folder = ImageFolder(Path(path), root, pair_rule)
        inner, deeper, skipped = list_folder(path, root)
        yield from skipped
        for lower in deeper:
            yield Remark(shown(lower), "left out: Kohya does not read folders inside numbered folders")
        tokens = numbered[2] if options.default_caption is None else options.default_caption
        yield from items_of(numbered_folder, inner, CaptionRule(tokens, lines="first"), int(numbered[1]))
