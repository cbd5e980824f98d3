"""Captions in a JSONL beside the images of a store, as `flowloom dataset upload` writes it."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from flowloom.data.row_checks import BadRow, captions_of, parse
from flowloom.datasets.build.stores import ListedObject
from flowloom.errors import DataError
from flowloom.text_files import utf8_lines

MAX_BYTES = 2**28
"""Larger JSONLs are not searched for captions."""


class Readable(Protocol):
    """A store that can be read."""

    def read(self, name: str) -> bytes: ...


@dataclass
class StoredRow:
    """A row of a JSONL about one image."""

    captions: tuple[str, ...]
    is_tag_based: bool | None
    loss_weight: float
    size: tuple[int, int]
    repeats: int = 1


def stored_rows(
    store: Readable, entries: Iterable[ListedObject], images: Collection[str]
) -> dict[str, list[StoredRow]]:
    """The rows of each of the `images`, from the newest top-level JSONL that names it.

    Args:
        entries: a listing of the store.

    Raises:
        SourceError: the store cannot be read.
    """
    listed = [entry for entry in entries if is_rows(entry.name) and entry.size <= MAX_BYTES]
    found: dict[str, list[StoredRow]] = {}
    for entry in sorted(listed, key=lambda entry: (str(entry.modified or ""), entry.name), reverse=True):
        rows: dict[str, list[StoredRow]] = {}
        for fields, row in _rows(store.read(entry.name)):
            name = _image(fields["filename"], images)
            if name and name not in found:
                _add(rows.setdefault(name, []), row)
        found |= rows
    return found


def is_rows(name: str) -> bool:
    """True if the object `name` may be a JSONL of the images in the store."""
    return "/" not in name and name.lower().endswith(".jsonl")


def _rows(data: bytes) -> Iterator[tuple[dict[str, Any], StoredRow]]:
    """The usable rows of a JSONL; none of any other file."""
    try:
        for line in utf8_lines(io.BytesIO(data)):
            row = parse(line)
            if isinstance(row, BadRow):
                continue
            fields = row.fields
            stated = fields.get("is_tag_based")
            is_tags = stated if isinstance(stated, bool) else None
            yield (
                fields,
                StoredRow(tuple(captions_of(fields)), is_tags, row.loss_weight, (row.width, row.height)),
            )
    except DataError:
        return


def _image(filename: str, images: Collection[str]) -> str | None:
    """The image that a row names by its address in the store or its public address."""
    path = filename
    if "://" in filename:
        parts = urlsplit(filename)
        is_web = parts.scheme in ("http", "https")
        path = unquote(parts.path) if is_web else filename.partition("://")[2].partition("/")[2]
    tail = path.strip("/")
    while tail and tail not in images:
        _, _, tail = tail.partition("/")
    return tail or None


def _add(rows: list[StoredRow], row: StoredRow) -> None:
    """Add `row`, or count it as a repeat of an equal one."""
    for other in rows:
        if (other.captions, other.is_tag_based, other.loss_weight) == (
            row.captions,
            row.is_tag_based,
            row.loss_weight,
        ):
            other.repeats += 1
            return
    rows.append(row)
