"""Captions in the rows of FLOW's JSONL."""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flowloom.datasets.build.items import Unusable
from flowloom.datasets.build.readers.table import REMOTE
from flowloom.datasets.build.stores import NamedStores
from flowloom.datasets.build.text import caption_of
from flowloom.errors import DataError
from flowloom.storage.local import find_image
from flowloom.tasks.tagging.changes import Applied, Change, Found, Target
from flowloom.text_files import decode

CAPTION, IS_TAGS = "caption_or_tags", "is_tag_based"
Fields = dict[str, Any]


class Rows:
    """A `CaptionSet`: rows of one picture are described once and all written. Places are line numbers."""

    writes_at_once = False

    def __init__(self, jsonl: Path, folder: Path | None):
        """
        Raises:
            DataError: there is no such file.
        """
        if not jsonl.is_file():
            raise DataError(f"{jsonl}: there is no such file.")
        self.path = jsonl.resolve()
        # What a build recorded beside it is not asked: in the studio, that may lead out of its folders.
        self.folder = folder or self.path.parent
        self.unusable: list[Unusable] = []
        self._offsets = array("q", [0])
        self._file = self.path.open("rb")
        self._stores = NamedStores()

    def targets(self) -> list[Target]:
        """The pictures, in the order of their first rows."""
        lines: dict[str, list[str]] = defaultdict(list)
        for number, line in _lines(self._file):
            self._offsets.append(self._offsets[-1] + len(line))
            if not line.strip():
                continue
            try:
                name = _fields(line).get("filename")
                if not isinstance(name, str) or not name:
                    raise DataError("it has no filename")
            except DataError as error:
                self.unusable.append(Unusable(f"{self.path.name}:{number}", str(error)))
                continue
            lines[name].append(str(number))
        return [Target(name, tuple(places)) for name, places in lines.items()]

    def picture(self, target: Target) -> bytes:
        """The bytes of the file below the folder, or at the address."""
        if not target.name.startswith(REMOTE):
            return find_image(self.folder, target.name).read_bytes()
        return self._stores.read(target.name)

    def found(self, target: Target) -> list[Found]:
        """The captions of its rows.

        Raises:
            DataError: one is neither a text nor a list of texts.
        """
        return [self._found(place) for place in target.places]

    def _found(self, place: str) -> Found:
        start, end = self._offsets[int(place) - 1], self._offsets[int(place)]
        fields = _fields(os.pread(self._file.fileno(), end - start, start))
        try:
            caption = caption_of(fields, CAPTION)
        except DataError as error:
            raise DataError(f"line {place}: {error}") from error
        texts = caption.texts if caption else ()
        return Found(place, _raw(fields), tuple(text for text in texts if text.strip()))

    def raw(self, found: Found, captions: tuple[str, ...], is_tags: bool | None) -> Any:
        """The two fields of the row."""
        if captions == found.captions:
            return found.raw
        text = captions[0] if len(captions) == 1 else list(captions)
        return found.raw | {CAPTION: text} | ({} if is_tags is None else {IS_TAGS: is_tags})

    def apply(self, changes: Mapping[str, Change], *, is_undone: bool = False) -> Applied:
        """Write the whole file anew beside itself, and put it in its place.

        Raises:
            DataError: it cannot be read or written; it is as it was.
        """
        applied = Applied()
        partial = self.path.with_name(f".{self.path.name}.tmp")
        try:
            with self.path.open("rb") as file, partial.open("wb") as new:
                read = _stamp(self.path)
                for number, line in _lines(file):
                    place = str(number)
                    change = changes.get(place)
                    new.write(_changed(line, change, is_undone, applied) if change else line)
                new.flush()
                os.fsync(new.fileno())
            if applied.num_written:
                if _stamp(self.path) != read:
                    raise DataError(
                        f"{self.path}: was just written by another program, and stays as that left it. "
                        "Wait for that, then resume the run."
                    )
                shutil.copymode(self.path, partial)
                partial.replace(self.path)
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}). Mend that, then resume the run."
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        applied.changed_since = [f"{self.path.name}:{place}" for place in applied.changed_since]
        return applied

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when the file does."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    return enumerate(file, start=1)


def _fields(line: bytes) -> Fields:
    try:
        fields = json.loads(decode(line))
    except (ValueError, DataError) as error:
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError("not a JSON object")
    return fields


def _raw(fields: Fields) -> Fields:
    return {key: fields[key] for key in (CAPTION, IS_TAGS) if key in fields}


def _changed(line: bytes, change: Change, is_undone: bool, applied: Applied) -> bytes:
    """The line with its new caption; as it is, where it has that or somebody else's."""
    source, aim = (change.after, change.before) if is_undone else (change.before, change.after)
    try:
        fields = _fields(line)
    except DataError:
        fields = {}
    now = _raw(fields)
    if fields.get("filename") != change.name or now not in (source, aim):
        applied.changed_since.append(change.place)
        return line
    if now == aim:
        return line
    applied.num_written += 1
    for key in now.keys() - aim.keys():
        del fields[key]
    text = json.dumps(fields | aim, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace") + b"\n"
