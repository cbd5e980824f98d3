"""Hugging Face data sets: saved on disk, or parquet files, with pictures inside or named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from flowloom.datasets.build.items import (
    PLAIN,
    Found,
    Held,
    Item,
    Reading,
    Unusable,
    good_name,
    shown,
    stamp_of,
    wrong_name,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.readers.table import FILENAME_KEYS, filename_of, item_of, recorded_caption
from flowloom.datasets.build.text import weight_of
from flowloom.errors import DataError
from flowloom.text_files import as_utf8

SAVED, SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` leaves beside a data set, and beside several."""
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
    """Whether `save_to_disk` made `folder`: files of these names belong to other programs, too."""
    try:
        if (folder / SPLITS).is_file():
            splits = _json(folder / SPLITS).get("splits")
            return isinstance(splits, list) and any((folder / str(split)).is_dir() for split in splits)
        named = _json(folder / SAVED).get("_data_files") if (folder / SAVED).is_file() else None
    except DataError:
        return False
    names = [entry.get("filename") for entry in named or () if isinstance(entry, dict)]
    return any(isinstance(name, str) and (folder / name).is_file() for name in names)


def open_huggingface(source: Path, options: BuildOptions) -> Reading:
    """The rows of a data set saved in the folder `source`, or of its parquet files, or of one.

    Raises:
        DataError: there is none, or no such split.
    """
    files = _files(source, options.split)
    if not files:
        raise DataError(f"{source}: there is neither a saved data set nor a parquet file in it.")
    root = (options.root or (source if source.is_dir() else source.parent)).resolve()
    return Reading("huggingface", root, _read(files, root, options))


def _files(source: Path, split: str) -> list[Path]:
    if source.is_file():
        return [source]
    if (source / SPLITS).is_file():
        return _files(source / _choose(source, _json(source / SPLITS).get("splits"), split), "")
    if (source / SAVED).is_file():
        named = _json(source / SAVED).get("_data_files") or []
        return [source / str(entry.get("filename")) for entry in named if isinstance(entry, dict)]
    files = sorted(source.rglob("*.parquet"))
    splits = {path.name.partition("-")[0] for path in files if "-of-" in path.name}
    if not splits or (len(splits) == 1 and not split):
        return files
    chosen = _choose(source, sorted(splits), split)
    return [path for path in files if path.name.startswith(f"{chosen}-")]


def _choose(source: Path, splits: Any, split: str) -> str:
    names = [str(name) for name in splits] if isinstance(splits, list) else []
    if not split:
        split = "train" if "train" in names or not names else names[0]
        if len(names) > 1 and "train" not in names:
            raise DataError(f"{source}: it has the splits {', '.join(names)}; name one by --split.")
    if split not in names or wrong_name(split):
        raise DataError(f"{source}: it has no split {split!r}, but {', '.join(names) or 'none'}.")
    return split


def _json(path: Path) -> dict[str, Any]:
    try:
        data = orjson.loads(as_utf8(path.read_bytes()))
    except (OSError, DataError, orjson.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    return data if isinstance(data, dict) else {}


def _read(files: list[Path], root: Path, options: BuildOptions) -> Iterator[Found]:
    from flowloom.datasets.build.arrow import read_rows  # pyarrow takes a while: only who needs it waits

    for path in files:
        number = 0
        try:
            stamp = stamp_of(path.stat())
            for number, fields in enumerate(read_rows(path), start=1):
                place = f"{shown(path.name)}:{number}"
                try:
                    picture = _inside(fields, options.image_column)
                    if picture is None:
                        yield item_of(place, _with_path(fields), root, options)
                    else:
                        name = _name(path, number, fields, picture)
                        content = Held(f"{path}!{number}", stamp, picture["bytes"])
                        yield _item(place, name, fields, content, options)
                except (DataError, OSError) as error:
                    yield Unusable(place, str(error))
        except (DataError, OSError) as error:
            yield Unusable(shown(path.name), f"{error}. The {number} rows before are used")


def _inside(fields: dict[str, Any], column: str) -> dict[str, Any] | None:
    """The picture that a row holds, as bytes and perhaps a path; None when it only names one."""
    values = [fields.get(column)] if column else fields.values()
    for value in values:
        if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
            return value
        if isinstance(value, bytes) and (column or suffix_of(value)):
            return {"bytes": value, "path": None}
    return None


def _with_path(fields: dict[str, Any]) -> dict[str, Any]:
    """Pictures that are only named stand as {bytes: null, path: ...}."""
    return {
        key: value.get("path") if isinstance(value, dict) and "path" in value else value
        for key, value in fields.items()
    }


def _name(path: Path, number: int, fields: dict[str, Any], picture: dict[str, Any]) -> str:
    """The recorded name where it is a good one; else the row's number."""
    known = {key: value for key, value in fields.items() if isinstance(value, str)}
    for name in (_filename(known), picture.get("path")):
        if good := good_name(name):
            return good
    return f"{path.stem}/{number:08d}{suffix_of(picture['bytes']) or '.png'}"


def _filename(fields: dict[str, Any]) -> str | None:
    if not {key.lower() for key in fields} & set(FILENAME_KEYS):
        return None
    return filename_of(fields)


def _item(place: str, filename: str, fields: dict[str, Any], content: Held, options: BuildOptions) -> Item:
    caption, texts = recorded_caption(fields, options)
    return Item(
        place,
        filename,
        content,
        PLAIN.apply(texts),
        is_tag_based=caption.is_tag_based if caption else None,
        is_inside=True,
        loss_weight=weight_of(fields.get("loss_weight")),
    )


def suffix_of(data: bytes) -> str | None:
    """The suffix for a picture's bytes; None when they are none that we know."""
    if data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((suffix for mark, suffix in _FORMATS if data.startswith(mark)), None)
