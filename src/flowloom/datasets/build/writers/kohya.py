"""Write Kohya's folders: `REPEATS_NAME/image`, with the caption beside it."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from flowloom.datasets.build.export import Export
from flowloom.datasets.build.items import reason_of
from flowloom.datasets.build.rows import FetchedRow, FlowRow

SampleKey: TypeAlias = tuple[str, tuple[str, ...], bool, float]
"""Name, captions, kind and loss weight: rows that are equal in these are repeats of one image."""


def write(export: Export) -> None:
    """Write the folders; a folder of the JSONL becomes one for each number of repeats."""
    output = export.empty_output_dir()
    repeats: Counter[SampleKey] = Counter(sample_key(row) for row in export.rows())
    labels: dict[str, str] = {}
    taken: set[str] = set()
    for fetched in export.fetched():
        sample = sample_key(fetched.row)
        if sample not in repeats:
            continue  # an equal row has been written, with the number of repeats
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
                "several captions, one per line: Kohya needs --enable_wildcard to use them"
            ] += 1
        if fetched.row.loss_weight != 1:
            export.report.remarks["loss_weight is lost: Kohya's folders cannot contain it"] += count
    export.report.files = sorted(output.iterdir())


def sample_key(row: FlowRow) -> SampleKey:
    """The key that is equal for repeats of one sample."""
    return row.filename, row.captions, row.is_tag_based, row.loss_weight


def _folder_of(row: FlowRow) -> str:
    return "" if row.is_url_based else str(PurePosixPath(row.filename).parent).removeprefix(".")


def _label(folder: str, labels: dict[str, str], name: str) -> str:
    """The label of a folder: its path as one name, distinct from others."""
    if folder not in labels:
        base = label = folder.replace("/", "_").strip() or name
        number = 1
        while label.casefold() in (other.casefold() for other in labels.values()):
            number, label = number + 1, f"{base}-{number + 1}"
        labels[folder] = label
    return labels[folder]


def _free_stem(row: FlowRow, folder: str, taken: set[str]) -> str:
    """A stem that no other image of the folder has, because the caption file uses it."""
    last = PurePosixPath(row.filename.partition("?")[0] if row.is_url_based else row.filename).stem
    base = stem = f"_{last}" if last.startswith(".") else last
    number = 1
    while f"{folder}/{stem}".casefold() in taken:
        number, stem = number + 1, f"{base}-{number + 1}"
    taken.add(f"{folder}/{stem}".casefold())
    return stem


def _place(fetched: FetchedRow, folder: Path, stem: str, export: Export) -> None:
    folder.mkdir(exist_ok=True)
    target = folder / f"{stem}{fetched.suffix}"
    if isinstance(fetched.image, bytes):
        target.write_bytes(fetched.image)
    elif export.options.link == "hard":
        os.link(fetched.image, target)
    elif export.options.link == "soft":
        target.symlink_to(fetched.image)
    else:
        shutil.copyfile(fetched.image, target)
    # At least one line: sd-scripts fails on an empty file.
    lines = (" ".join(caption.split()) for caption in fetched.row.captions)
    (folder / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
