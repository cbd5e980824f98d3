"""Write Kohya's dataset TOML and its metadata files; images are not copied."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from flowloom.datasets.build.export import Export
from flowloom.datasets.build.writers.kohya import SampleKey, sample_key
from flowloom.files import replacing

Group: TypeAlias = tuple[str, int, bool, bool, int]
"""Folder, repeats, captions are tags, captions are several, number of the image's row."""


def write(export: Export) -> None:
    """Write the TOML, with a subset for each folder and number of repeats."""
    repeats: Counter[SampleKey] = Counter(sample_key(row) for row in export.rows())
    captions_of: Counter[str] = Counter()
    groups: dict[Group, dict[str, dict[str, Any]]] = defaultdict(dict)
    for fetched in export.fetched():
        row, path = fetched.row, fetched.image
        sample = sample_key(row)
        if isinstance(path, bytes):
            export.refuse(row, "a URL: Kohya reads only local files. The format kohya downloads images")
        elif not all(caption.strip() for caption in row.captions):
            export.refuse(row, "an empty caption, which Kohya's metadata cannot have")
        elif sample in repeats:
            variant = captions_of[str(path)]
            captions_of[str(path)] += 1
            group = (str(path.parent), repeats.pop(sample), row.is_tag_based, len(row.captions) > 1, variant)
            fields: dict[str, Any] = {
                "tags" if row.is_tag_based else "caption": "\n".join(
                    " ".join(caption.split()) for caption in row.captions
                )
            }
            if row.loss_weight != 1:
                fields["loss_weight"] = row.loss_weight
                export.report.remarks["loss_weight is in the metadata, but Kohya ignores it"] += 1
            groups[group][str(path)] = fields
    _write_files(export, groups)


def _write_files(export: Export, groups: dict[Group, dict[str, dict[str, Any]]]) -> None:
    lines = ["[general]", "enable_bucket = true", "", "[[datasets]]", "resolution = 1024", "batch_size = 1"]
    for number, (group, entries) in enumerate(sorted(groups.items())):
        folder, repeats, is_tag_based, has_several, _ = group
        metadata = export.output.with_name(f"{export.output.stem}-{number}.json")
        _replace(metadata, orjson.dumps(entries, option=orjson.OPT_INDENT_2))
        lines += [
            "",
            "[[datasets.subsets]]",
            f"image_dir = {quoted(folder)}",
            f"metadata_file = {quoted(str(metadata.absolute()))}",
            f"num_repeats = {repeats}",
            f"shuffle_caption = {str(is_tag_based).lower()}",
            f"enable_wildcard = {str(has_several).lower()}",
        ]
        export.report.files.append(metadata)
    _replace(export.output, "\n".join([*lines, ""]).encode())
    export.report.files.insert(0, export.output)


def quoted(text: str) -> str:
    """`text` as a TOML string: JSON's, with the one control character that JSON does not escape."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _replace(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)
