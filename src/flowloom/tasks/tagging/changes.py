"""Captions before and after, noted before anything is written: from this a run goes on, and is undone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flowloom.datasets.build.items import Unusable


@dataclass(frozen=True, slots=True)
class Target:
    """A picture to be described."""

    name: str
    """Below the folder, or a URL."""
    places: tuple[str, ...]
    """Where its caption goes: a file beside it, or lines of a JSONL."""


@dataclass(frozen=True, slots=True)
class Found:
    """What stands in one place."""

    place: str
    raw: Any
    """All that an undo puts back; None where there is nothing."""
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one place."""

    place: str
    name: str
    """Of the picture."""
    before: Any
    after: Any


@dataclass
class Applied:
    """What became of changes."""

    num_written: int = 0
    changed_since: list[str] = field(default_factory=list)
    """Places with another caption than before and after: somebody else's, left as they are."""


class CaptionSet(Protocol):
    """Pictures whose captions can be read and written."""

    unusable: list[Unusable]
    writes_at_once: bool
    """Whether changes are cheap to write one by one; else all of them are written together."""

    def targets(self) -> list[Target]:
        """Every picture, in order."""
        ...

    def picture(self, target: Target) -> bytes:
        """The picture's file."""
        ...

    def found(self, target: Target) -> list[Found]:
        """What stands in each of its places."""
        ...

    def raw(self, found: Found, captions: tuple[str, ...], is_tags: bool | None) -> Any:
        """What would stand there with other captions; `is_tags` None: of the kind they were."""
        ...

    def apply(self, changes: Mapping[str, Change], *, is_undone: bool = False) -> Applied:
        """Write what is not written: a place that is neither before nor after stays as it is."""
        ...

    def close(self) -> None:
        """Let go of its files."""
        ...


class Journal(Mapping[str, Change]):
    """Changes by place, in a file of one JSON object a line; a torn last line does not count."""

    def __init__(self, path: Path):
        self._offsets: dict[str, int] = {}
        self.num_changed = 0
        """Those that are changes indeed; the others only note that a picture was looked at."""
        self._file = path.open("a+b")
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._note(Change(**json.loads(line)), end)
            end += len(line)
        self._file.truncate(end)
        self._end = end

    def add(self, changes: Sequence[Change]) -> None:
        """Note `changes`, on the disk when this returns."""
        # Escapes keep bytes that are no UTF-8, half surrogates here, as they are.
        lines = [json.dumps(asdict(change)).encode() + b"\n" for change in changes]
        self._file.write(b"".join(lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        for change, line in zip(changes, lines, strict=True):
            self._note(change, self._end)
            self._end += len(line)

    def _note(self, change: Change, offset: int) -> None:
        self._offsets[change.place] = offset
        self.num_changed += change.before != change.after

    def __getitem__(self, place: str) -> Change:
        self._file.seek(self._offsets[place])
        return Change(**json.loads(self._file.readline()))

    def __contains__(self, place: object) -> bool:
        return place in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
