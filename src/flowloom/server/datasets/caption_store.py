"""Captions as bytes that are read, compared and replaced: in files beside pictures, or in a JSONL."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from flowloom.server.allowed_roots import inside
from flowloom.server.datasets.captions import (
    NO_CAPTION,
    NONE,
    Caption,
    content_of,
    is_tags,
    parsed,
    put,
    version_of,
)
from flowloom.server.datasets.index import Index, stamp_of
from flowloom.server.datasets.scan import MAX_LINE_BYTES, Row, Seen, fields_of, row_of, seen_one, text_of
from flowloom.server.problems import ServiceError

AT_ONCE, THREADS = 500, 8
"""Each of many small files is a wait for the disk."""


class Unreadable(ServiceError):
    status, code, title = 409, "unreadable", "That cannot be edited as it is."


class Raw(NamedTuple):
    """What holds one caption: a file, or a line."""

    item: str
    place: str
    """The caption's file below the folder, or the number of the line."""
    data: bytes | None
    """None: there is no such file."""

    @property
    def version(self) -> str:
        """Another one when the content is."""
        return NONE if self.data is None else version_of(self.data)


class Change(NamedTuple):
    """One caption before and after."""

    item: str
    place: str
    before: bytes | None
    after: bytes | None


class Spot(NamedTuple):
    """Where a caption is looked for."""

    item: str
    place: str = ""
    """As in `Raw`; empty: where a new caption of the item would go."""


class Book(Protocol):
    """The captions of a data set, by item."""

    def raws(self, spots: Iterable[Spot]) -> Iterator[Raw]:
        """What holds the captions at `spots`, given in the data set's order; what is gone is left out."""
        ...

    def caption(self, raw: Raw) -> Caption:
        """What it says."""
        ...

    def edited(self, raw: Raw, text: str) -> bytes | None:
        """What holds `text` in its place; None: no file is needed."""
        ...

    def write(self, changes: Iterable[Change]) -> list[str]:
        """Replace `before` by `after`, in order; answers the items that are no longer as `before` says."""
        ...


def open_book(index: Index) -> Book:
    """The captions of the data set of `index`.

    Raises:
        WrongKind: they can only be read.
    """
    if index.dataset.kind == "jsonl" and index.dataset.path:
        return _Lines(index, index.dataset.path)
    return _Files(index, index.dataset.folder)


class _Files:
    """Captions in files beside the pictures of a folder."""

    def __init__(self, index: Index, top: Path):
        self.index, self.top = index, top
        self._inside: dict[str, Path] = {}
        """Folders below the top that were found to lie there."""

    def raws(self, spots: Iterable[Spot]) -> Iterator[Raw]:
        for item, place in spots:
            place = place or self._new_place(item)
            yield Raw(item, place, self._content(place))

    def _new_place(self, item: str) -> str:
        """Where a caption goes: beside the picture, by the whole name where others share the stem."""
        stem, dot, _ = item.rpartition(".")
        is_alone = dot and len(self.index.namesakes(stem)) < 2
        return f"{stem}.txt" if is_alone else f"{item}.txt"

    def _path(self, place: str) -> Path:
        """Of a file that may not be there, in a folder that is below the top."""
        folder, _, name = place.rpartition("/")
        if folder not in self._inside:
            self._inside[folder] = inside(self.top, folder)
        return self._inside[folder] / name

    def _content(self, place: str) -> bytes | None:
        try:
            number = os.open(self._path(place), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise Unreadable(f"{place}: {error.strerror}.", "Look at the file's rights.") from None
            return inside(self.top, place).read_bytes()
        with os.fdopen(number, "rb") as file:
            return file.read()

    def caption(self, raw: Raw) -> Caption:
        return NO_CAPTION if raw.data is None else parsed(Path(raw.place).name, raw.data)

    def edited(self, raw: Raw, text: str) -> bytes | None:
        return content_of(raw.place, text, raw.data)

    def write(self, changes: Iterable[Change]) -> list[str]:
        changed: list[str] = []
        waiting = iter(changes)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="captions") as pool:
            while some := list(islice(waiting, AT_ONCE)):
                written: list[Seen] = []
                for change, seen in zip(some, pool.map(self._replace, some), strict=True):
                    changed += [change.item] if seen is None else []
                    written += seen or ()
                self.index.refresh_if_present(written)
        return changed

    def _replace(self, change: Change) -> list[Seen] | None:
        """The picture as it is to be looked at again; None where `before` is no longer there."""
        if self._content(change.place) != change.before:
            return None
        put(self._path(change.place), change.after)
        return list(seen_one(self.top, change.item, change.place if change.after is not None else ""))


class _Lines:
    """Captions in the lines of a JSONL, which is written anew as a whole."""

    def __init__(self, index: Index, path: Path):
        self.index, self.path = index, path

    def raws(self, spots: Iterable[Spot]) -> Iterator[Raw]:
        wanted = (spot.item for spot in spots)
        item = next(wanted, None)
        with self.path.open("rb") as file:
            for number, line in enumerate(_whole_lines(file, self.path), start=1):
                while item is not None and (not _is_number(item) or int(item) < number):
                    item = next(wanted, None)
                if item is None:
                    return
                if int(item) == number and line.strip():
                    yield Raw(item, item, line.rstrip(b"\r\n"))
                    item = next(wanted, None)

    def caption(self, raw: Raw) -> Caption:
        fields, problem = fields_of(raw.data or b"")
        text, stated = text_of(fields), fields.get("is_tag_based")
        return Caption(text, raw.version, stated if isinstance(stated, bool) else is_tags(text), problem)

    def edited(self, raw: Raw, text: str) -> bytes | None:
        fields, problem = fields_of(raw.data or b"")
        if problem:
            raise Unreadable(
                f"{self.path.name}:{raw.place}: {problem}.", "Mend the line first: POST .../lint."
            )
        is_list = isinstance(fields.get("caption_or_tags"), list)
        text = text.strip()
        fields["caption_or_tags"] = text.split("\n") if is_list else " ".join(text.splitlines())
        return json.dumps(fields, ensure_ascii=False).encode()

    def write(self, changes: Iterable[Change]) -> list[str]:
        waiting = iter(changes)
        change = next(waiting, None)
        changed: list[str] = []
        agreed = self.index.stamp() == stamp_of(self.path)
        rows: list[Row] = []
        partial = self.path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with self.path.open("rb") as old, partial.open("wb") as new:
                read = stamp_of(self.path)
                for number, line in enumerate(_whole_lines(old, self.path), start=1):
                    content, end = line.rstrip(b"\r\n"), line[len(line.rstrip(b"\r\n")) :]
                    if change and int(change.place) == number:
                        if content == change.before and change.after is not None:
                            content = change.after
                            rows += [row_of(number, content)] if len(rows) <= AT_ONCE else []
                        else:
                            changed.append(change.item)
                        change = next(waiting, None)
                    new.write(content + end)
            if stamp_of(self.path) != read:
                message = f"{self.path.name} was just written by another program, a run that tags say."
                raise Unreadable(message, "Nothing was changed. Wait for that, then do it again.")
            partial.chmod(self.path.stat().st_mode & 0o777)
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        changed += [left.item for left in ([change] if change else []) + list(waiting)]
        if agreed and len(rows) <= AT_ONCE:
            self.index.put(rows)
            self.index.keep_stamp(stamp_of(self.path))
        return changed


def _is_number(item: str) -> bool:
    """Whether a line may be called so."""
    return item.isdecimal() and len(item) < 19


def _whole_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise Unreadable(f"{path.name} has a line of more than {MAX_LINE_BYTES:,} bytes.", "Split it.")
        yield line
