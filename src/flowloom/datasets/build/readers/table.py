"""One metadata file: CSV, TSV, JSON or JSONL with a file name and a caption per row."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import orjson

from flowloom.data.row_checks import BadRow, parse, references_of
from flowloom.data.row_checks import Unusable as UnusableRow
from flowloom.datasets.build.items import (
    PLAIN,
    Item,
    OpenedSource,
    ReaderOutput,
    Unusable,
    local_file,
    name_problem,
    reason_of,
    shown,
)
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.pairs import split_suffix
from flowloom.datasets.build.text import CAPTION_KEYS, Caption, caption_of, decode, is_missing, weight_of
from flowloom.errors import DataError
from flowloom.image_suffixes import IMAGE_SUFFIXES, JXL_SUFFIX
from flowloom.json_types import is_array, is_object
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
"""Column names for a file's name or address, in lower case; the first one found is used."""
WIDTH_KEYS, HEIGHT_KEYS = (
    ("width", "original_width", "image_width"),
    ("height", "original_height", "image_height"),
)
REMOTE = ("http://", "https://", "s3://", "gs://", "az://")
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
_CONTROL = re.compile(r"control_path(_\d+)?")
_EXTRA = "\0extra"
"""Key under which the csv module puts surplus cells; no header can equal it."""

Fields = dict[str, Any]


def open_table(path: Path, options: BuildOptions) -> OpenedSource:
    """The rows of the file at `path`; file names are relative to --root, or to its folder."""
    root = (options.root or path.parent).resolve()
    return OpenedSource("table", root, _read(path, root, options))


def _read(path: Path, root: Path, options: BuildOptions) -> Iterator[ReaderOutput]:
    for record in records(path, options.caption_encoding):
        if isinstance(record, Unusable):
            yield record
            continue
        where, fields = record
        try:
            yield item_of(where, fields, root, options)
        except DataError as error:
            yield Unusable(where, str(error))


def records(path: Path, encoding: str) -> Iterator[tuple[str, Fields] | Unusable]:
    """(where, fields) of each row of any kind of table.

    Raises:
        DataError: the file cannot be read at all.
    """
    suffix = split_suffix(path.name)[1]
    try:
        if suffix in (".csv", ".tsv"):
            yield from _csv_records(path, encoding, "\t" if suffix == ".tsv" else ",")
        elif suffix == ".json":
            yield from ((where, {"filename": name} | fields) for where, name, fields in json_records(path))
        else:
            yield from _jsonl_records(path)
    except OSError as error:
        raise DataError(f"{path}: {reason_of(error)}.") from error


def _jsonl_records(path: Path) -> Iterator[tuple[str, Fields] | Unusable]:
    with path.open("rb") as file:
        for number, line in enumerate(utf8_lines(file), start=1):
            if not line.strip():
                continue
            where = f"{shown(path.name)}:{number}"
            row = parse(line)
            if isinstance(row, BadRow) and not row.fields:
                yield Unusable(where, row.reason)
            else:
                yield where, row.fields


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
    num_header_lines = 2 if stated else 1
    start = 1 + num_header_lines
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Unusable(f"{shown(path.name)}:{start}", f"not valid CSV from here on: {error}")
            return
        if fields is None:
            return
        where, start = f"{shown(path.name)}:{start}", reader.line_num + num_header_lines
        if _EXTRA in fields or None in fields.values():
            num_columns = len(reader.fieldnames or ())
            hint = ": put the caption in quotes" if _EXTRA in fields else ""
            yield Unusable(where, f"it does not have {num_columns} columns{hint}")
        else:
            yield where, fields


def _stated_delimiter(text: str) -> tuple[str, str]:
    """The delimiter in Excel's first line `sep=;`, or "", and the text without that line."""
    match = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    return (match[1], text[match.end() :]) if match else ("", text)


def _delimiter(text: str, usual: str) -> str:
    """The delimiter that splits the header into known column names; otherwise the usual one."""
    header = text.partition("\n")[0]
    for delimiter in (usual, ";", "\t", "|", ","):
        names = {name.strip().strip('"').lower() for name in header.split(delimiter)}
        if len(names) > 1 and names & {*FILENAME_KEYS}:
            return delimiter
    return usual


def json_records(path: Path) -> Iterator[tuple[str, str, Fields]]:
    """(where, name, fields) of a JSON file: a list of objects, or an object of objects or captions by name.

    Raises:
        DataError: it is not such a file.
    """
    try:
        data = orjson.loads(as_utf8(path.read_bytes()))
    except (orjson.JSONDecodeError, DataError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {reason_of(error)}.") from error
    if is_object(data):
        for name, value in data.items():
            where = f"{shown(path.name)}[{shown(name)}]"
            yield where, name, value if is_object(value) else {"caption": value}
    elif is_array(data):
        for number, value in enumerate(data):
            where = f"{shown(path.name)}[{number}]"
            yield where, "", value if is_object(value) else {"caption": value}
    else:
        raise DataError(f"{path}: not a list of rows or an object of rows by name.")


def item_of(where: str, fields: Fields, root: Path, options: BuildOptions) -> Item:
    """The row `fields` as an item.

    Raises:
        DataError: something is missing or wrong.
    """
    name = filename_of(fields, options.filename_column)
    caption, texts = recorded_caption(fields, options)
    is_tags = caption.is_tag_based if caption else None
    weight = weight_of(fields.get("loss_weight"))
    size = _recorded_size(fields)
    captions = PLAIN.apply(texts)
    if name.startswith(REMOTE):
        return Item(
            where,
            name,
            None,
            captions,
            is_tag_based=is_tags,
            is_url_based=True,
            loss_weight=weight,
            size=size,
        )
    image = find_listed_image(root, name)
    if isinstance(image, str):
        raise DataError(f"{shown(name)}: {image}")
    filename = image.relative_to(root).as_posix()
    content = local_file(image)
    item = Item(where, filename, content, captions, is_tag_based=is_tags, loss_weight=weight, size=size)
    return replace(item, references=tuple(_references(fields, root)))


def _references(fields: Fields, root: Path) -> Iterator[str]:
    """The reference images of a row: `references`, or musubi-tuner's `control_path` and `control_path_0`."""
    try:
        names = [*references_of(fields)]
    except UnusableRow as error:
        raise DataError(str(error)) from error
    names += [str(fields[key]) for key in sorted(fields) if _CONTROL.fullmatch(key) and fields[key]]
    for name in names:
        image = find_listed_image(root, name)
        if isinstance(image, str):
            raise DataError(f"reference {shown(name)}: {image}")
        yield image.relative_to(root).as_posix()


def recorded_caption(fields: Fields, options: BuildOptions) -> tuple[Caption | None, tuple[str, ...]]:
    """The caption of a row and its texts; of a row without one, the default caption.

    Raises:
        DataError: there is none, or it is a placeholder for none (nan, None, null).
    """
    caption = caption_of(fields, options.caption_column)
    # Placeholders are real captions in FLOW's own rows; other tables were often written by pandas.
    is_flow = "caption_or_tags" in fields
    texts = [text for text in caption.texts if is_flow or not is_missing(text)] if caption else []
    if texts:
        return caption, tuple(texts)
    if options.default_captions is not None:
        return None, options.default_captions
    if caption:
        raise DataError(f"it has no caption, only {caption.texts[0]!r}")
    raise DataError(f"it has no caption{_column_hint(fields, CAPTION_KEYS, 'caption')}")


def filename_of(fields: Fields, column: str = "") -> str:
    """The file's name or address in a row.

    Raises:
        DataError: there is none.
    """
    lower = {key.lower(): key for key in reversed(fields)}
    names = [column] if column else [lower[key] for key in FILENAME_KEYS if key in lower]
    value = next((fields[name] for name in names if fields.get(name)), None)
    if not isinstance(value, str):
        expected = column or "filename, file_name, image, path, url ..."
        hint = _column_hint(fields, (column or "", *FILENAME_KEYS), "filename")
        raise DataError(f"it names no file{hint or f': {expected} is empty'}")
    return value


def _column_hint(fields: Fields, known: Iterable[str], meaning: str) -> str:
    """A hint if no column has one of the `known` names; otherwise ""."""
    if {key.lower() for key in fields} & {*known}:
        return ""
    names = shown(", ".join(map(str, fields)))
    return f": none of its columns ({names:.200}) is known as a {meaning}; name one with --{meaning}-column"


def _recorded_size(fields: Fields) -> tuple[int, int] | None:
    lower = {key.lower(): value for key, value in fields.items()}
    sides = [next((lower[key] for key in keys if key in lower), None) for keys in (WIDTH_KEYS, HEIGHT_KEYS)]
    try:
        width, height = (int(side or 0) for side in sides)
    except (TypeError, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def find_listed_image(root: Path, name: str) -> Path | str:
    """The file below `root` that `name` means, with or without suffix; or the reason why there is none.

    It finds the file that training will read: the .jxl twin of a file that has one.
    """
    if not name:
        return "it names no file"
    if "\0" in name:
        return "its name is not a file name"
    name = local_name(root, name)
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(root):
        return f"it leads out of {root}: pass a folder above as --root"
    try:
        matches = [path] if path.is_file() else _with_suffix(path)
        if len(matches) != 1:
            return f"it may be {' or '.join(other.name for other in matches)}" if matches else "no such file"
        return _path_problem(matches[0], root) or matches[0]
    except (OSError, RuntimeError) as error:
        return f"cannot be read: {error}"


def local_name(root: Path, name: str) -> str:
    """`name` as a path on this machine, if it was written on Windows or on another machine.

    Of an absolute path, the longest tail that exists below `root`.
    """
    is_absolute = name.startswith("/") or bool(PureWindowsPath(name).drive)
    if not (is_absolute or "\\" in name) or (root / name).exists():
        return name
    parts = PureWindowsPath(name).parts
    starts = range(1, len(parts)) if is_absolute else range(1)
    tails = ("/".join(parts[start:]) for start in starts)
    return next(
        (tail for tail in tails if ".." not in tail and (root / tail).is_file()), name.replace("\\", "/")
    )


def _path_problem(path: Path, root: Path) -> str | None:
    if not path.resolve().is_relative_to(root):
        return f"it is a link out of {root}, which training does not follow"
    twin = path.with_suffix(JXL_SUFFIX)
    if path != twin and twin.is_file():
        return f"training reads {twin.name} instead: remove one of the two files"
    return name_problem(path.relative_to(root).as_posix())


def _with_suffix(path: Path) -> list[Path]:
    """Files of the name with an image suffix: Kohya's metadata omits it, and FLOW prefers a .jxl."""
    candidates = [path.with_name(path.name + suffix) for suffix in sorted(IMAGE_SUFFIXES)]
    if split_suffix(path.name)[1] in IMAGE_SUFFIXES:
        candidates = [path.with_suffix(JXL_SUFFIX)]
    return [candidate for candidate in candidates if candidate.is_file()]
