"""One metadata file: CSV, TSV, JSON or JSONL with a name and a caption a row."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import orjson

from flowloom.data.row_checks import BadRow, parse
from flowloom.datasets.build.items import (
    JXL,
    PICTURES,
    PLAIN,
    Found,
    Item,
    Reading,
    Unusable,
    local_file,
    reason_of,
    shown,
    wrong_name,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.text import CAPTION_KEYS, Caption, caption_of, decode, is_missing, weight_of
from flowloom.errors import DataError
from flowloom.text_files import as_utf8, utf8_lines

FILENAME_KEYS = (
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image_path",
    "path",
    "file",
    "image",
    "img",
    "image_file",
    "url",
    "image_url",
    "key",
)
"""Names under which tables keep a file's name or address, the first one found wins; lower case."""
WIDTH_KEYS, HEIGHT_KEYS = (
    ("width", "original_width", "image_width"),
    ("height", "original_height", "image_height"),
)
REMOTE = ("http://", "https://", "s3://", "gs://", "az://")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_EXTRA = "\0extra"
"""Where the csv module puts the cells that a row has too many; no header can say so."""

Fields = dict[str, Any]


def open_table(path: Path, options: BuildOptions) -> Reading:
    """The rows of the file at `path`; its local names are relative to --root, or else to its folder."""
    root = (options.root or path.parent).resolve()
    return Reading("table", root, _read(path, root, options))


def _read(path: Path, root: Path, options: BuildOptions) -> Iterator[Found]:
    for record in records(path, options.caption_encoding):
        if isinstance(record, Unusable):
            yield record
            continue
        place, fields = record
        try:
            yield item_of(place, fields, root, options)
        except DataError as error:
            yield Unusable(place, str(error))


def records(path: Path, encoding: str) -> Iterator[tuple[str, Fields] | Unusable]:
    """(place, fields) of each row, whatever kind of file it is.

    Raises:
        DataError: the file cannot be read at all.
    """
    suffix = split_suffix(path.name)[1]
    try:
        if suffix in (".csv", ".tsv"):
            yield from _csv_records(path, encoding, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            yield from ((place, {"filename": name} | fields) for place, name, fields in json_records(path))
        else:
            yield from _jsonl_records(path)
    except OSError as error:
        raise DataError(f"{path}: {reason_of(error)}.") from error


def _jsonl_records(path: Path) -> Iterator[tuple[str, Fields] | Unusable]:
    with path.open("rb") as file:
        for number, line in enumerate(utf8_lines(file), start=1):
            if not line.strip():
                continue
            place = f"{shown(path.name)}:{number}"
            row = parse(line)
            if isinstance(row, BadRow) and not row.fields:
                yield Unusable(place, row.reason)
            else:
                yield place, row.fields


def _csv_records(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[str, Fields] | Unusable]:
    try:
        text = decode(path.read_bytes(), encoding)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from error
    stated, text = _stated_delimiter(text)
    delimiter = stated or _delimiter(text, delimiter)
    file = io.StringIO(text, newline="")
    reader = csv.DictReader(file, delimiter=delimiter, restkey=_EXTRA, strict=True, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    num_above = 2 if stated else 1
    start = 1 + num_above
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Unusable(f"{shown(path.name)}:{start}", f"not CSV from here on: {error}")
            return
        if fields is None:
            return
        place, start = f"{shown(path.name)}:{start}", reader.line_num + num_above
        if _EXTRA in fields or None in fields.values():
            many = len(reader.fieldnames or ())
            hint = ": put the caption in quotes" if _EXTRA in fields else ""
            yield Unusable(place, f"it has more or fewer than the {many} columns{hint}")
        else:
            yield place, fields


def _stated_delimiter(text: str) -> tuple[str, str]:
    """The delimiter that a first line `sep=;` of Excel states, or ""; and the text without that line."""
    found = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    return (found[1], text[found.end() :]) if found else ("", text)


def _delimiter(text: str, usual: str) -> str:
    """What stands between the columns: the usual one, or another by which the first line has known names."""
    header = text.partition("\n")[0]
    for delimiter in (usual, ";", "\t", "|", ","):
        names = {name.strip().strip('"').lower() for name in header.split(delimiter)}
        if len(names) > 1 and names & {*FILENAME_KEYS}:
            return delimiter
    return usual


def json_records(path: Path) -> Iterator[tuple[str, str, Fields]]:
    """(place, name, fields) of a JSON file: a list of objects, or an object of objects or captions by name.

    Raises:
        DataError: it is neither.
    """
    try:
        data = orjson.loads(as_utf8(path.read_bytes()))
    except (orjson.JSONDecodeError, DataError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {reason_of(error)}.") from error
    if isinstance(data, dict):
        for name, value in data.items():
            place = f"{shown(path.name)}[{shown(name)}]"
            yield place, name, value if isinstance(value, dict) else {"caption": value}
    elif isinstance(data, list):
        for number, value in enumerate(data):
            place = f"{shown(path.name)}[{number}]"
            yield place, "", value if isinstance(value, dict) else {"caption": value}
    else:
        raise DataError(f"{path}: neither a list of rows nor an object of them by name.")


def item_of(place: str, fields: Fields, root: Path, options: BuildOptions) -> Item:
    """The row `fields` as an item.

    Raises:
        DataError: what is missing or wrong.
    """
    name = filename_of(fields, options.filename_column)
    caption, texts = recorded_caption(fields, options)
    is_tags = caption.is_tag_based if caption else None
    weight = weight_of(fields.get("loss_weight"))
    size = _recorded_size(fields)
    captions = PLAIN.apply(texts)
    if name.startswith(REMOTE):
        return Item(
            place,
            name,
            None,
            captions,
            is_tag_based=is_tags,
            is_url_based=True,
            loss_weight=weight,
            size=size,
        )
    picture = find_picture(root, name)
    if isinstance(picture, str):
        raise DataError(f"{shown(name)}: {picture}")
    filename = picture.relative_to(root).as_posix()
    content = local_file(picture)
    return Item(place, filename, content, captions, is_tag_based=is_tags, loss_weight=weight, size=size)


def recorded_caption(fields: Fields, options: BuildOptions) -> tuple[Caption | None, tuple[str, ...]]:
    """The caption of a row and its texts; of a row without one, the default caption.

    Raises:
        DataError: there is none. Words that tables write for nothing (nan, None, null) are none.
    """
    caption = caption_of(fields, options.caption_column)
    # FLOW's own rows say what they mean; other tables were often written by pandas.
    is_flow = "caption_or_tags" in fields
    texts = [text for text in caption.texts if is_flow or not is_missing(text)] if caption else []
    if texts:
        return caption, tuple(texts)
    if options.default_captions is not None:
        return None, options.default_captions
    if caption:
        raise DataError(f"it has no caption, only {caption.texts[0]!r}")
    raise DataError(f"it has no caption{_unless_known(fields, CAPTION_KEYS, 'caption')}")


def filename_of(fields: Fields, column: str = "") -> str:
    """The file's name or address in a row.

    Raises:
        DataError: there is none.
    """
    lower = {key.lower(): key for key in reversed(fields) if isinstance(key, str)}
    names = [column] if column else [lower[key] for key in FILENAME_KEYS if key in lower]
    value = next((fields[name] for name in names if fields.get(name)), None)
    if not isinstance(value, str):
        wanted = column or "filename, file_name, image, path, url ..."
        hint = _unless_known(fields, (column or "", *FILENAME_KEYS), "filename")
        raise DataError(f"it names no file{hint or f': {wanted} is empty'}")
    return value


def _unless_known(fields: Fields, known: Iterable[str], meaning: str) -> str:
    """What to do where no column has one of the `known` names; "" where one has."""
    if {key.lower() for key in fields if isinstance(key, str)} & {*known}:
        return ""
    names = shown(", ".join(map(str, fields)))
    return f": of its columns ({names:.200}) none is known as a {meaning}; name it by --{meaning}-column"


def _recorded_size(fields: Fields) -> tuple[int, int] | None:
    lower = {key.lower(): value for key, value in fields.items() if isinstance(key, str)}
    sides = [next((lower[key] for key in keys if key in lower), None) for keys in (WIDTH_KEYS, HEIGHT_KEYS)]
    try:
        width, height = (int(side or 0) for side in sides)
    except (TypeError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def find_picture(root: Path, name: str) -> Path | str:
    """The file below `root` that `name` means, with or without suffix; or why there is none.

    What it finds is what training will read: of a file with a .jxl twin, the twin.
    """
    if not name:
        return "it names no file"
    if "\0" in name:
        return "its name is not that of a file"
    name = from_elsewhere(root, name)
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(root):
        return f"it leads out of {root}: name a folder above by --root"
    try:
        found = [path] if path.is_file() else _with_suffix(path)
        if len(found) != 1:
            return f"it may be {' or '.join(other.name for other in found)}" if found else "no such file"
        return _why_not(found[0], root) or found[0]
    except (OSError, RuntimeError) as error:
        return f"cannot be read: {error}"


def from_elsewhere(root: Path, name: str) -> str:
    """`name` as a path of this machine, where it was written on Windows or on another machine.

    Of a whole path, the longest end of it that is there below `root`.
    """
    is_whole = name.startswith("/") or bool(PureWindowsPath(name).drive)
    if not (is_whole or "\\" in name) or (root / name).exists():
        return name
    parts = PureWindowsPath(name).parts
    starts = range(1, len(parts)) if is_whole else range(1)
    ends = ("/".join(parts[start:]) for start in starts)
    return next((end for end in ends if ".." not in end and (root / end).is_file()), name.replace("\\", "/"))


def _why_not(path: Path, root: Path) -> str | None:
    if not path.resolve().is_relative_to(root):
        return f"it is a link out of {root}, which training does not follow"
    twin = path.with_suffix(JXL)
    if path != twin and twin.is_file():
        return f"training reads {twin.name} in its place: take one of them away"
    return wrong_name(path.relative_to(root).as_posix())


def _with_suffix(path: Path) -> list[Path]:
    """Kohya's metadata names pictures without their suffix; FLOW reads a .jxl for any other."""
    tried = [path.with_name(path.name + suffix) for suffix in sorted(PICTURES)]
    if split_suffix(path.name)[1] in PICTURES:
        tried = [path.with_suffix(JXL)]
    return [other for other in tried if other.is_file()]
