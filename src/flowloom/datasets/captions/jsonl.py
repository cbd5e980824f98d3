"""Captions in the rows of FLOW's JSONL."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO

from flowloom.data.row_checks import CAPTION, IS_TAGS, parse
from flowloom.datasets.captions.formats import (
    NO_CAPTION,
    Caption,
    edited_row,
    parse_row,
    row_fields,
    with_fields,
)
from flowloom.datasets.captions.store import BATCH_SIZE, CaptionError, Change, Written, busy, replacing

MAX_LINE_BYTES = 2**22


class JsonlCaptions:
    """A `CaptionStore`; places are line numbers from 1, their content is the line without its line break.

    Reads are of the file as it was at the first read, until `write` or `close`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: IO[bytes] | None = None
        self._offsets = array("q")

    def read(self, place: str) -> bytes | None:
        """The line; None if there is none, or it is empty.

        Raises:
            CaptionError: a line of the file is too long.
        """
        if self._file is None:
            self._open()
        assert self._file
        number = int(place) if place.isdecimal() and len(place) < 19 else 0
        if not 0 < number < len(self._offsets):
            return None
        start, end = self._offsets[number - 1], self._offsets[number]
        line = os.pread(self._file.fileno(), end - start, start)
        return line.rstrip(b"\r\n") if line.strip() else None

    def _open(self) -> None:
        file = self.path.open("rb")
        offsets = array("q", [0])
        try:
            for line in _lines(file, self.path):
                offsets.append(offsets[-1] + len(line))
        except BaseException:
            file.close()
            raise
        self._file, self._offsets = file, offsets

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Every line that is not empty, with its place."""
        if self._file is None:
            self._open()
        for number in range(1, len(self._offsets)):
            line = self.read(str(number))
            if line is not None:
                yield str(number), line

    def caption(self, place: str, data: bytes | None) -> Caption:  # noqa: ARG002
        """The caption in the line."""
        return NO_CAPTION if data is None else parse_row(data)

    def edited(
        self, place: str, data: bytes | None, captions: list[str], is_tags: bool | None = None
    ) -> bytes | None:
        """The line with other captions.

        Raises:
            CaptionError: it is not a row.
        """
        row = parse(data or b"")
        if not row.filename:
            reason = getattr(row, "reason", "it is empty")
            raise CaptionError(f"{self.label(place)}: {reason}.", "Fix the line first: POST .../lint.")
        return edited_row(data or b"", captions, is_tags)

    def is_same(self, data: bytes | None, other: bytes | None) -> bool:
        """True if both are rows of the same image with the same caption."""
        return data == other or (
            data is not None and other is not None and _caption_of(data) == _caption_of(other)
        )

    def rebased(self, change: Change, data: bytes | None) -> Change | None:
        """`change` on top of other fields that were changed in the line; None if its caption was."""
        if data == change.before:
            return change
        if data is None or change.before is None or change.after is None:
            return None
        now = _caption_of(data)
        if now is None or now != _caption_of(change.before):
            return None
        fields = row_fields(change.after)
        removed = [key for key in (CAPTION, IS_TAGS) if key not in fields]
        values = {key: fields[key] for key in (CAPTION, IS_TAGS) if key in fields}
        return change._replace(before=data, after=with_fields(data, values, removed))

    def write(
        self, changes: Iterable[Change], on_written: Callable[[list[Change]], None] = lambda _: None
    ) -> Written:
        """Rewrite the file with the changes of lines that still contain `before`.

        Args:
            changes: in the order of the lines.
            on_written: gets the changes if they are at most BATCH_SIZE.

        Raises:
            CaptionError: another program writes the file, or a line is too long; nothing was changed.
            OSError: it cannot be written; nothing was changed.
        """
        written = Written()
        done: list[Change] = []
        remaining = iter(changes)
        first = next(remaining, None)
        if first is None:
            return written
        with self.path.open("rb") as old, replacing(self.path) as new:
            stamp = stamp_of(self.path)
            for line, change in self._merged(old, chain([first], remaining), written):
                new.write(line)
                if change:
                    written.num_written += 1
                    done += [change] if len(done) <= BATCH_SIZE else []
            new.flush()
            os.fsync(new.fileno())
            if stamp_of(self.path) != stamp:
                raise busy(self.path)
        self.close()
        if len(done) <= BATCH_SIZE:
            on_written(done)
        return written

    def _merged(
        self, file: IO[bytes], changes: Iterable[Change], written: Written
    ) -> Iterator[tuple[bytes, Change | None]]:
        """Each line as it is to be written, with the change that was made to it."""
        remaining = iter(changes)
        change = next(remaining, None)
        for number, line in enumerate(_lines(file, self.path), start=1):
            done = None
            if change and change.place == str(number):
                content = line.rstrip(b"\r\n")
                done = self.rebased(change, content)
                if done and done.after is not None:
                    line = done.after + line[len(content) :]
                else:
                    written.changed_meanwhile.append(change.ref)
                change = next(remaining, None)
            yield line, done
        written.changed_meanwhile += [left.ref for left in ([change] if change else []) + list(remaining)]

    def require_access(self) -> None:
        """Nothing to check: the file is replaced as a whole or not at all."""

    def order(self, place: str) -> int:
        """The line number."""
        return int(place) if place.isdecimal() and len(place) < 19 else 0

    def label(self, place: str) -> str:
        """FILE:LINE."""
        return f"{self.path.name}:{place}"

    def close(self) -> None:
        """Close the file; the next read opens it as it is then."""
        if self._file:
            self._file.close()
        self._file = None


def stamp_of(path: Path) -> str:
    """Changes whenever the file does."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _caption_of(line: bytes) -> list[object] | None:
    """The image and the caption fields of a row; None if it is not a row."""
    row = parse(line)
    return [row.filename, *(row.fields.get(key, ...) for key in (CAPTION, IS_TAGS))] if row.filename else None


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            raise CaptionError(
                f"{path.name} has a line of more than {MAX_LINE_BYTES:,} bytes.", "Split the line."
            )
        yield line
