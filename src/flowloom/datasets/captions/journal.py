"""The journal of changed captions, written before them, so that a killed change is finished or undone."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from flowloom.datasets.captions.store import CaptionRef, CaptionStore, Change
from flowloom.json_types import is_array, is_object


class Journal:
    """Changes in a file, one JSON object per line. A torn last line is removed when the file is opened."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("a+b")
        self._file.seek(0)
        end = sum(len(line) for line in self._file if line.endswith(b"\n"))
        self._file.truncate(end)

    def add(self, changes: Iterable[Change]) -> None:
        """Append `changes`; they are on the disk when this returns."""
        for change in changes:
            fields = {name: _packed(value) for name, value in change._asdict().items()}
            self._file.write(json.dumps(fields).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.__dict__.pop("offsets", None)

    def changes(self, store: CaptionStore | None = None) -> Iterator[Change]:
        """In the order in which they were added, or in which `store` writes them."""
        with self.path.open("rb") as file:
            if store is None:
                yield from map(_change, file)
                return
            for place in sorted(self.offsets, key=store.order):
                file.seek(self.offsets[place])
                yield _change(file.readline())

    @cached_property
    def offsets(self) -> dict[str, int]:
        """Where the last change of each place is in the file."""
        offsets, end = dict[str, int](), 0
        with self.path.open("rb") as file:
            for line in file:
                offsets[_change(line).place] = end
                end += len(line)
        return offsets

    def num_changed(self) -> int:
        """Changes that change something; the others record that a caption was left as it was."""
        return sum(change.before != change.after for change in self.changes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def pending(
    store: CaptionStore, changes: Iterable[Change], changed: list[CaptionRef], *, is_undo: bool = False
) -> Iterator[Change]:
    """The part of `changes` that is still to be made, or to be undone.

    Args:
        changed: gets the places where another program changed the caption.
    """
    for change in changes:
        data = store.read(change.place)
        if is_undo:
            change = change._replace(before=change.after, after=change.before)
        elif data == b"":  # what a power failure may leave of a new file
            change = change._replace(before=b"")
        if store.is_same(data, change.after):
            continue
        rebased = store.rebased(change, data)
        if rebased:
            yield rebased
        else:
            changed.append(change.ref)


def _change(line: bytes) -> Change:
    fields = json.loads(line)
    item = fields["item"] if "item" in fields else fields["name"]  # `name`: as older runs wrote it
    before, after = (_unpacked(fields[key], item) for key in ("before", "after"))
    return Change(item, fields["place"], before, after)


def _packed(value: str | bytes | None) -> str | list[str] | None:
    """Bytes as text where they are UTF-8, for people to read; otherwise in a list, as base64."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(value).decode()]


def _unpacked(value: Any, item: str) -> bytes | None:
    if is_object(value):  # the caption fields of a row, as older runs wrote them
        return json.dumps({"filename": item} | value).encode()
    if is_array(value):
        return base64.b64decode(value[0])
    return None if value is None else value.encode("utf-8", "surrogateescape")
