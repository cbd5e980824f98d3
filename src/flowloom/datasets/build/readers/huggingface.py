"""Hugging Face datasets: saved to disk or as parquet files, with embedded or referenced images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from flowloom.datasets.build.items import (
    PLAIN,
    InMemory,
    Item,
    OpenedSource,
    ReaderOutput,
    Unusable,
    image_name,
    name_problem,
    shown,
    stamp_of,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.readers.table import FILENAME_KEYS, filename_of, item_of, recorded_caption
from flowloom.datasets.build.text import weight_of
from flowloom.errors import DataError
from flowloom.json_types import is_array, is_object
from flowloom.text_files import as_utf8

SAVED, SPLITS = "state.json", "dataset_dict.json"
"""Files that `save_to_disk` writes for one dataset, and for several splits."""
_FORMATS = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"\xff\x0a", ".jxl"),
    (b"\0\0\0\x0cJXL ", ".jxl"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
)


def is_saved(folder: Path) -> bool:
    """True if `save_to_disk` wrote `folder`; other programs write files of these names, too."""
    try:
        if (folder / SPLITS).is_file():
            splits = _json(folder / SPLITS).get("splits")
            return is_array(splits) and any((folder / str(split)).is_dir() for split in splits)
        named = _json(folder / SAVED).get("_data_files") if (folder / SAVED).is_file() else None
    except DataError:
        return False
    names = [entry.get("filename") for entry in named or () if is_object(entry)]
    return any(isinstance(name, str) and (folder / name).is_file() for name in names)


def open_huggingface(source: Path, options: BuildOptions) -> OpenedSource:
    """The rows of a dataset saved in the folder `source`, of its parquet files, or of one file.

    Raises:
        DataError: there is no dataset, or no such split.
    """
    files = _files(source, options.split)
    if not files:
        raise DataError(f"{source}: it contains neither a saved dataset nor a parquet file.")
    root = (options.root or (source if source.is_dir() else source.parent)).resolve()
    return OpenedSource("huggingface", root, _read(files, root, options))


def _files(source: Path, split: str) -> list[Path]:
    if source.is_file():
        return [source]
    if (source / SPLITS).is_file():
        return _files(source / _choose(source, _json(source / SPLITS).get("splits"), split), "")
    if (source / SAVED).is_file():
        named: list[Any] = _json(source / SAVED).get("_data_files") or []
        return [source / str(entry.get("filename")) for entry in named if is_object(entry)]
    files = sorted(source.rglob("*.parquet"))
    splits = {path.name.partition("-")[0] for path in files if "-of-" in path.name}
    if not splits or (len(splits) == 1 and not split):
        return files
    chosen = _choose(source, sorted(splits), split)
    return [path for path in files if path.name.startswith(f"{chosen}-")]


def _choose(source: Path, splits: Any, split: str) -> str:
    names = [str(name) for name in splits] if is_array(splits) else []
    if not split:
        split = "train" if "train" in names or not names else names[0]
        if len(names) > 1 and "train" not in names:
            raise DataError(f"{source}: it has the splits {', '.join(names)}; choose one with --split.")
    if split not in names or name_problem(split):
        raise DataError(f"{source}: it has no split {split!r}. Splits: {', '.join(names) or 'none'}.")
    return split


def _json(path: Path) -> dict[str, Any]:
    try:
        data = orjson.loads(as_utf8(path.read_bytes()))
    except (OSError, DataError, orjson.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    return data if is_object(data) else {}


def _read(files: list[Path], root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    from flowloom.datasets.build.arrow import read_rows  # pyarrow is slow to import

    for path in files:
        number = 0
        try:
            stamp = stamp_of(path.stat())
            for number, fields in enumerate(read_rows(path), start=1):
                where = f"{shown(path.name)}:{number}"
                try:
                    image = _inside(fields, options.image_column)
                    if image is None:
                        yield item_of(where, _with_path(fields), root, options)
                    else:
                        name = _name(path, number, fields, image)
                        content = InMemory(f"{path}!{number}", stamp, image["bytes"])
                        yield _item(where, name, fields, content, options)
                except (DataError, OSError) as error:
                    yield Unusable(where, str(error))
        except (DataError, OSError) as error:
            yield Unusable(shown(path.name), f"{error}. The {number} rows before are used")


def _inside(fields: dict[str, Any], column: str) -> dict[str, Any] | None:
    """The image embedded in a row, as bytes and possibly a path; None if the row only names one."""
    values = [fields.get(column)] if column else fields.values()
    for value in values:
        if is_object(value) and isinstance(value.get("bytes"), bytes):
            return value
        if isinstance(value, bytes) and (column or suffix_of(value)):
            return {"bytes": value, "path": None}
    return None


def _with_path(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with `{bytes: null, path: ...}`, an image that is only named, replaced by its path."""
    return {
        key: value.get("path") if is_object(value) and "path" in value else value
        for key, value in fields.items()
    }


def _name(path: Path, number: int, fields: dict[str, Any], image: dict[str, Any]) -> str:
    """The recorded name if it is usable; otherwise the number of the row."""
    texts = {key: value for key, value in fields.items() if isinstance(value, str)}
    for name in (_filename(texts), image.get("path")):
        if usable := image_name(name):
            return usable
    return f"{path.stem}/{number:08d}{suffix_of(image['bytes']) or '.png'}"


def _filename(fields: dict[str, Any]) -> str | None:
    if not {key.lower() for key in fields} & set(FILENAME_KEYS):
        return None
    return filename_of(fields)


def _item(
    where: str, filename: str, fields: dict[str, Any], content: InMemory, options: BuildOptions
) -> Item:
    caption, texts = recorded_caption(fields, options)
    return Item(
        where,
        filename,
        content,
        PLAIN.apply(texts),
        is_tag_based=caption.is_tag_based if caption else None,
        is_inside=True,
        loss_weight=weight_of(fields.get("loss_weight")),
    )


def suffix_of(data: bytes) -> str | None:
    """The suffix of the image format of `data`; None for an unknown format."""
    if data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((suffix for mark, suffix in _FORMATS if data.startswith(mark)), None)
