"""Edits of many captions: shown first, written down before they are made, and undone by what was written.

The journal of an edit holds each caption before and after. It is whole on the disk before the first caption
changes, so that an edit that was cut short is undone like any other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TypeVar

from flowloom.server.datasets.caption_store import Book, Change, Raw, Spot, open_book
from flowloom.server.datasets.captions import NONE, Caption
from flowloom.server.datasets.edit_lock import Turns
from flowloom.server.datasets.index import Index
from flowloom.server.datasets.operations import Operation, applied
from flowloom.server.datasets.scan import Row
from flowloom.server.datasets.table import Filter
from flowloom.server.problems import NoSuchFile, Place, ServiceError

T = TypeVar("T")
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
KEPT = 200
"""Edits of a data set that can still be undone."""
NAMED = 20
"""Examples in a refusal."""


class CaptionChanged(ServiceError):
    status, code, title = 412, "caption-changed", "The caption was changed meanwhile."


class EditChanged(ServiceError):
    status, code, title = 412, "edit-changed", "The captions are no longer those of the preview."


class ChangedMeanwhile(ServiceError):
    status, code, title = 409, "changed-meanwhile", "Some captions were changed since."


class NoSuchEdit(ServiceError):
    status, code, title = 404, "no-such-edit", "There is no such edit."

    def __init__(self, name: str):
        super().__init__(f"No edit is called {name!r}.", "GET .../edits lists those that can be undone.")


@dataclass(frozen=True)
class Example:
    """One caption, before and after."""

    item: str
    before: str
    after: str


@dataclass
class Plan:
    """What an edit would do."""

    num_meant: int = 0
    num_changed: int = 0
    examples: list[Example] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Items whose captions cannot be read, which stay as they are."""
    version: str = ""
    """Another one when the edit would do something else."""


@dataclass(frozen=True)
class Edit:
    """One that was made."""

    id: str
    time: float
    title: str
    num_changed: int
    undoes: str | None = None
    changed_meanwhile: tuple[str, ...] = ()
    """Items that were left as they are, since somebody changed them between look and write."""
    is_whole: bool = True
    """False: it was cancelled while it wrote, and changed no more than it counts."""


class Editor:
    """All changes to the captions of one data set go through here, one after the other."""

    def __init__(self, index: Index, turns: Turns):
        self.index = index
        self.book: Book = open_book(index)
        self.folder = index.folder / "edits"
        self.turns = turns

    def read(self, item: str) -> Caption:
        """The caption of `item` as it is now.

        Raises:
            NoSuchFile: there is no such picture.
        """
        raw = self._raw(item)
        return self._caption(raw)

    def write(self, item: str, text: str, versions: set[str]) -> Caption:
        """Make `text` the caption of `item`.

        Args:
            versions: those that it may have now, or "*" for any.

        Raises:
            CaptionChanged: it is another one by now.
            NoSuchFile: there is no such picture.
            EditUnderWay: many are being edited.
        """
        with self.turns.take(f"the caption of {item}"):
            raw = self._raw(item)
            now = self._caption(raw)
            if "*" not in versions and now.version not in versions:
                todo = f"It says now: {now.text:.200}. Read it again, and decide between the two."
                raise CaptionChanged(f"The caption of {item} has version {now.version}.", todo)
            after = self.book.edited(raw, text)
            if after != raw.data and self.book.write([Change(item, raw.place, raw.data, after)]):
                raise CaptionChanged(
                    f"The caption of {item} was just written by another program.", "Read it again."
                )
            return self._caption(raw._replace(data=after))

    def plan(self, operation: Operation, wanted: Filter, num_examples: int) -> Plan:
        """What `operation` would do to the captions that are meant."""
        self.index.refresh(is_strict=True)
        plan = Plan()
        for _ in self._wishes(operation, self.index.rows(wanted), plan, num_examples):
            pass
        return plan

    def make(self, operation: Operation, wanted: Filter, version: str | None, title: str) -> Edit:
        """Do it.

        Args:
            version: of the plan; None: whatever it does now.

        Raises:
            EditChanged: it would do something else than the plan said.
            EditUnderWay: another one is being made.
            EditCancelled: somebody did that before it changed anything.
        """
        with self.turns.take(title):
            self.index.refresh(is_strict=True)
            plan, others = Plan(), list[str]()
            num_meant, _ = self.index.page(wanted, "name", 0, 0)
            rows = self.turns.watch("reading", num_meant, self.index.rows(wanted))
            journal = self._write_down(self._changes(self._wishes(operation, rows, plan, 0), others))
            if version not in (None, plan.version):
                journal.unlink()
                todo = "Ask for the preview again, and send its version."
                raise EditChanged(f"{plan.num_changed:,} captions would be changed now.", todo)
            return self._carry_out(journal, title, None, others)

    def undo(self, edit_id: str, *, is_partial: bool) -> Edit:
        """Put back what `edit_id` changed; that itself is an edit.

        Args:
            is_partial: leave out what was changed since, rather than refuse.

        Raises:
            NoSuchEdit: it is unknown, or too long ago.
            ChangedMeanwhile: with what was changed since.
            EditUnderWay: another one is being made.
        """
        edit = self._known(edit_id)
        title = f"Undone: {edit.title}"
        with self.turns.take(title):
            self.index.refresh(is_strict=True)
            others: list[str] = []
            journal = self._write_down(self._reversals(edit, others))
            if others and not is_partial:
                journal.unlink()
                places = [
                    Place(pointer=f"/{item}", detail="was changed after this edit.")
                    for item in others[:NAMED]
                ]
                todo = "Undo the later edits first, or send is_partial to put back all others."
                raise ChangedMeanwhile(
                    f"{len(others):,} of {edit.num_changed:,} captions were changed since.", todo, places
                )
            return self._carry_out(journal, title, edit_id, others)

    def edits(self) -> list[Edit]:
        """Those that can be undone, the latest first."""
        found = [edit for path in self.folder.glob("*.json") if (edit := _read(path))]
        return sorted(found, key=lambda edit: edit.time, reverse=True)

    def _raw(self, item: str) -> Raw:
        row = self.index.get(item)
        if row is None:
            self.index.refresh(is_strict=True)
            row = self.index.get(item)
        for raw in self.book.raws([Spot(item, row.sidecar)] if row else []):
            return raw
        raise NoSuchFile(item)

    def _caption(self, raw: Raw) -> Caption:
        found = self.book.caption(raw)
        return Caption(found.text, raw.version, found.is_tags, found.problem)

    def _wishes(
        self, operation: Operation, rows: Iterable[Row], plan: Plan, num_examples: int
    ) -> Iterator[tuple[Row, str]]:
        """The captions of `rows` that `operation` changes, with what they shall say."""
        digest = hashlib.blake2b(digest_size=12)
        for row in rows:
            plan.num_meant += 1
            if row.problem and not row.caption and row.version != NONE:
                plan.unreadable.append(row.item)
                continue
            text = applied(operation, row.caption).strip()
            if text == row.caption:
                continue
            plan.num_changed += 1
            digest.update(f"{row.item}\0{row.version}\0{text}\0".encode())
            if len(plan.examples) < num_examples:
                plan.examples.append(Example(row.item, row.caption, text))
            yield row, text
        plan.version = digest.hexdigest()

    def _changes(self, wishes: Iterable[tuple[Row, str]], others: list[str]) -> Iterator[Change]:
        """What carries `wishes` out; `others` gets the items that were changed since the list was made."""
        spots = ((Spot(row.item, row.sidecar), (row, text)) for row, text in wishes)
        for (row, text), raw in _side_by_side(spots, self.book):
            if raw is None or raw.version != row.version:
                others.append(row.item)
            else:
                yield Change(row.item, raw.place, raw.data, self.book.edited(raw, text))

    def _reversals(self, edit: Edit, others: list[str]) -> Iterator[Change]:
        """What puts the captions of an edit back; `others` gets the items that somebody changed since."""
        entries = _entries(self.folder / f"{edit.id}.jsonl")
        written = self.turns.watch("reading", edit.num_changed, entries)
        spots = ((Spot(change.item, change.place), change) for change in written)
        for change, raw in _side_by_side(spots, self.book):
            if raw is None or raw.data not in (change.before, change.after):
                others.append(change.item)
            elif raw.data != change.before:
                yield Change(change.item, change.place, raw.data, change.before)

    def _write_down(self, changes: Iterable[Change]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.jsonl"
        try:
            with path.open("w", encoding="utf-8") as file:
                for change in changes:
                    entry = {name: _packed(value) for name, value in change._asdict().items()}
                    file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink()
            raise
        return path

    def _carry_out(self, journal: Path, title: str, undoes: str | None, others: list[str]) -> Edit:
        """Make the changes that are written down."""
        with journal.open("rb") as file:
            num_changes = sum(1 for _ in file)
        about = {"title": title, "time": time.time(), "num_changed": num_changes, "undoes": undoes}
        journal.with_suffix(".json").write_text(json.dumps(about))
        numbers = count()  # of those that are passed on until it is cancelled
        written = zip(self.turns.watch("writing", num_changes, _entries(journal)), numbers, strict=False)
        changed = self.book.write(change for change, _ in written)
        num_passed = next(numbers)
        about |= {"num_changed": num_passed - len(changed), "is_whole": num_passed == num_changes}
        journal.with_suffix(".json").write_text(json.dumps(about))
        for old in sorted(self.folder.glob("*.json"), reverse=True)[KEPT:]:
            old.unlink()
            old.with_suffix(".jsonl").unlink(missing_ok=True)
        return Edit(journal.stem, **about, changed_meanwhile=(*others, *changed))

    def _known(self, edit_id: str) -> Edit:
        path = self.folder / f"{edit_id}.json"
        found = _read(path) if _ID.fullmatch(edit_id) else None
        if found is None or not path.with_suffix(".jsonl").exists():
            raise NoSuchEdit(edit_id)
        return found


def _side_by_side(spots: Iterator[tuple[Spot, T]], book: Book) -> Iterator[tuple[T, Raw | None]]:
    """What came with each spot, and what holds the caption there now; both in the data set's order."""
    waiting: deque[tuple[str, T]] = deque()

    def asked() -> Iterator[Spot]:
        for spot, known in spots:
            waiting.append((spot.item, known))
            yield spot

    for raw in book.raws(asked()):
        while waiting[0][0] != raw.item:
            yield waiting.popleft()[1], None
        yield waiting.popleft()[1], raw
    yield from ((known, None) for _, known in waiting)
    yield from ((known, None) for _, known in spots)


def _entries(path: Path) -> Iterator[Change]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            yield Change(entry["item"], entry["place"], _unpacked(entry["before"]), _unpacked(entry["after"]))


def _packed(value: str | bytes | None) -> str | list[str] | None:
    """Bytes as text where they are text, to be read by people; else in a list, as base64."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return [base64.b64encode(value).decode()]


def _unpacked(value: str | list[str] | None) -> bytes | None:
    return (
        base64.b64decode(value[0]) if isinstance(value, list) else None if value is None else value.encode()
    )


def _read(path: Path) -> Edit | None:
    try:
        return Edit(path.stem, **json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
