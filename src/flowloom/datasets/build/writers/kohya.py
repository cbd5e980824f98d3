"""Kohya's folders: `REPEATS_NAME/picture` with the caption beside it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from flowloom.datasets.build.export import Export
from flowloom.datasets.build.items import reason_of
from flowloom.datasets.build.rows import Fetched, FlowRow

Sample: TypeAlias = tuple[str, tuple[str, ...], bool, float]
"""Name, captions, kind and loss weight: rows that are equal in them are one picture repeated."""


def write(export: Export) -> None:
    """Write the folders; a folder of the JSONL becomes one for each number of repeats."""
    output = export.empty_output_dir()
    repeats: Counter[Sample] = Counter(sample_of(row) for row in export.rows())
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for fetched in export.fetched():
        sample = sample_of(fetched.row)
        if sample not in repeats:
            continue  # one of its equals has been written, with their number
        count = repeats.pop(sample)
        label = _label(_folder_of(fetched.row), labels, export.name)
        folder = output / f"{count}_{label}"
        try:
            stem = _free_stem(fetched.row, folder.name, taken)
            _place(fetched, folder, stem, export)
        except OSError as error:
            export.refuse(fetched.row, reason_of(error))
            export.report.num_rows -= count - 1
            continue
        if len(fetched.row.captions) > 1:
            export.report.remarks[
                "several captions, one a line: Kohya needs --enable_wildcard to use them"
            ] += 1
        if fetched.row.loss_weight != 1:
            export.report.remarks["loss_weight is lost: Kohya's folders have no place for it"] += count
    export.report.files = sorted(output.iterdir())


def sample_of(row: FlowRow) -> Sample:
    """What makes two rows the same sample."""
    return row.filename, row.captions, row.is_tag_based, row.loss_weight


def _folder_of(row: FlowRow) -> str:
    return "" if row.is_url_based else str(PurePosixPath(row.filename).parent).removeprefix(".")


def _label(folder: str, labels: dict[str, str], name: str) -> str:
    """What the folder is called: its path in one part, told apart from others."""
    if folder not in labels:
        wanted = label = folder.replace("/", "_").strip() or name
        number = 1
        while label.casefold() in (known.casefold() for known in labels.values()):
            number, label = number + 1, f"{wanted}-{number + 1}"
        labels[folder] = label
    return labels[folder]


def _free_stem(row: FlowRow, folder: str, taken: set[str]) -> str:
    """A name without suffix that no other picture of the folder has: the caption goes by it."""
    last = PurePosixPath(row.filename.partition("?")[0] if row.is_url_based else row.filename).stem
    wanted = stem = f"_{last}" if last.startswith(".") else last
    number = 1
    while f"{folder}/{stem}".casefold() in taken:
        number, stem = number + 1, f"{wanted}-{number + 1}"
    taken.add(f"{folder}/{stem}".casefold())
    return stem


def _place(fetched: Fetched, folder: Path, stem: str, export: Export) -> None:
    folder.mkdir(exist_ok=True)
    target = folder / f"{stem}{fetched.suffix}"
    if isinstance(fetched.picture, bytes):
        target.write_bytes(fetched.picture)
    elif export.options.link == "hard":
        os.link(fetched.picture, target)
    elif export.options.link == "soft":
        target.symlink_to(fetched.picture)
    else:
        shutil.copyfile(fetched.picture, target)
    # Never without a line: sd-scripts stops at an empty file.
    lines = (" ".join(caption.split()) for caption in fetched.row.captions)
    (folder / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
