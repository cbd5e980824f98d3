"""Edits of many captions, which can be previewed, cancelled and undone.

The journal of an edit has each caption before and after. It is complete on the disk before the first caption
changes, so that an interrupted edit can be undone like any other.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from flowloom.datasets.captions.files import caption_place
from flowloom.datasets.captions.folder import FolderCaptions
from flowloom.datasets.captions.formats import NO_VERSION, Caption, version_of
from flowloom.datasets.captions.journal import Journal, pending
from flowloom.datasets.captions.jsonl import JsonlCaptions, stamp_of
from flowloom.datasets.captions.store import (
    CaptionError,
    CaptionRef,
    CaptionStore,
    Change,
    OutsideFolder,
    Written,
)
from flowloom.server.datasets.edit_lock import EditLock
from flowloom.server.datasets.index import Index
from flowloom.server.datasets.locations import Dataset
from flowloom.server.datasets.operations import Operation, applied
from flowloom.server.datasets.scan import Row, row_of
from flowloom.server.datasets.store_captions import StoreCaptions
from flowloom.server.datasets.table import Filter
from flowloom.server.problems import FieldProblem, NoSuchFile, OutsideRoots, ServiceError

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
KEPT = 200
"""Number of edits of a dataset that can be undone."""
ELSEWHERE = "Build a JSONL dataset from the bucket, and edit the captions there."
NAMED = 20
"""Number of examples in an error."""


class Unreadable(ServiceError):
    status, code, title = 409, "caption-unreadable", "This caption cannot be edited."


class CaptionChanged(ServiceError):
    status, code, title = 412, "caption-changed", "The caption has changed since it was read."


class EditChanged(ServiceError):
    status, code, title = 412, "edit-changed", "The captions have changed since the preview."


class ChangedMeanwhile(ServiceError):
    status, code, title = 409, "changed-meanwhile", "Some captions have changed since the edit."


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
    """The effect of an edit that is not made yet."""

    num_matching: int = 0
    num_changed: int = 0
    examples: list[Example] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Items whose captions cannot be read and stay unchanged."""
    version: str = ""
    """Changes if the edit would have another effect."""


@dataclass(frozen=True)
class Edit:
    """An edit that was made."""

    id: str
    time: float
    title: str
    num_changed: int
    undoes: str | None = None
    changed_meanwhile: tuple[str, ...] = ()
    """Items left unchanged because another program changed them after they were read."""
    is_whole: bool = True
    """False: it was cancelled while writing; `num_changed` captions were changed."""


class Editor:
    """Reads and changes the captions of one dataset, one change at a time."""

    def __init__(self, index: Index, lock: EditLock):
        dataset = index.dataset
        self.index = index
        self.store = _store_of(dataset)
        self.folder = index.folder / "edits"
        self.lock = lock

    def read(self, item: str) -> Caption:
        """The current caption of `item`.

        Raises:
            NoSuchFile: there is no such image.
            Unreadable: its caption cannot be read.
        """
        with self._open():
            place, data = self._content(item)
            return self.store.caption(place, data)

    def write(self, item: str, text: str, versions: set[str]) -> Caption:
        """Make `text` the caption of `item`.

        Args:
            versions: accepted versions of the present caption; "*" accepts any.

        Raises:
            CaptionChanged: the caption has another version by now.
            NoSuchFile: there is no such image.
            Unreadable: its caption cannot be read or edited.
            EditUnderWay: another edit is being made.
        """
        with self.lock.take(f"the caption of {item}"), self._open():
            self.store.require_access()
            place, data = self._content(item)
            now = self.store.caption(place, data)
            if "*" not in versions and now.version not in versions:
                hint = f"Read it again and merge the changes. It is now: {now.text:.200}"
                raise CaptionChanged(f"The caption of {item} has version {now.version}.", hint)
            after = self.store.edited(place, data, text.strip().split("\n"))
            if after != data and self._write([Change(item, place, data, after)]).changed_meanwhile:
                raise CaptionChanged(
                    f"Another program has just written the caption of {item}.", "Read it again."
                )
            return self.store.caption(place, after)

    def plan(self, operation: Operation, selected: Filter, num_examples: int) -> Plan:
        """The effect of `operation` on the captions of the `selected` images."""
        self.index.refresh(is_strict=True)
        plan = Plan()
        for _ in self._edited_rows(operation, self.index.rows(selected), plan, num_examples):
            pass
        return plan

    def make(self, operation: Operation, selected: Filter, version: str | None, title: str) -> Edit:
        """Apply `operation` to the captions of the `selected` images.

        Args:
            version: of the plan; None accepts any.

        Raises:
            EditChanged: the edit would no longer do what the plan showed.
            EditUnderWay: another edit is being made.
            EditCancelled: the edit was cancelled before it changed anything.
        """
        with self.lock.take(title), self._open():
            self.store.require_access()
            self.index.refresh(is_strict=True)
            plan, changed = Plan(), list[CaptionRef]()
            num_matching, _ = self.index.page(selected, "name", 0, 0)
            rows = self.lock.watch("reading", num_matching, self.index.rows(selected))
            with self._journal(
                self._changes(self._edited_rows(operation, rows, plan, 0), changed)
            ) as journal:
                if version not in (None, plan.version):
                    hint = "Request the preview again, and send its version."
                    raise EditChanged(f"The edit would now change {plan.num_changed:,} captions.", hint)
                return self._apply(journal, title, None, changed)

    def undo(self, edit_id: str, *, is_partial: bool) -> Edit:
        """Restore the captions that `edit_id` changed; that itself is an edit.

        Args:
            is_partial: leave out captions that were changed since, instead of refusing.

        Raises:
            NoSuchEdit: there is no such edit, or it is too old.
            ChangedMeanwhile: some captions were changed since.
            EditUnderWay: another edit is being made.
        """
        edit = self._edit(edit_id)
        title = f"Undone: {edit.title}"
        with self.lock.take(title), closing(Journal(self.folder / f"{edit_id}.jsonl")) as old, self._open():
            self.store.require_access()
            self.index.refresh(is_strict=True)
            changed: list[CaptionRef] = []
            changes = self.lock.watch("reading", edit.num_changed, old.changes())
            with self._journal(pending(self.store, changes, changed, is_undo=True)) as journal:
                if changed and not is_partial:
                    places = [
                        FieldProblem(where=f"/{ref.item}", detail="has changed since this edit.")
                        for ref in changed[:NAMED]
                    ]
                    hint = "Undo the later edits first, or send is_partial to restore all others."
                    raise ChangedMeanwhile(
                        f"{len(changed):,} of {edit.num_changed:,} captions have changed since.", hint, places
                    )
                return self._apply(journal, title, edit_id, changed)

    def edits(self) -> list[Edit]:
        """Edits that can be undone, newest first."""
        found = [edit for path in self.folder.glob("*.json") if (edit := _read(path))]
        return sorted(found, key=lambda edit: edit.time, reverse=True)

    @contextmanager
    def _open(self) -> Generator[None]:
        """Raise errors of the captions as problems, and close the store at the end."""
        try:
            yield
        except OutsideFolder as error:
            raise OutsideRoots(str(error)) from error
        except CaptionError as error:
            raise Unreadable(str(error), error.hint) from error
        finally:
            self.store.close()

    def _content(self, item: str) -> tuple[str, bytes | None]:
        """The place of the caption of `item`, and its content."""
        row = self.index.get(item)
        if row is None:
            self.index.refresh(is_strict=True)
            row = self.index.get(item)
        if row is None:
            raise NoSuchFile(item)
        if _is_elsewhere(row):
            raise CaptionError(f"The caption of {item} is in a JSONL of the bucket.", ELSEWHERE)
        place = self._place(row)
        data = self.store.read(place)
        if row.position and data is None:  # the line is gone
            raise NoSuchFile(item)
        return place, data

    def _place(self, row: Row) -> str:
        """The line, or the caption file, which may not exist yet."""
        if row.position or row.sidecar:
            return row.sidecar or row.item
        is_only = len(self.index.namesakes(row.item.rpartition(".")[0])) < 2
        return caption_place(row.item, ".txt", is_only=is_only)

    def _edited_rows(
        self, operation: Operation, rows: Iterable[Row], plan: Plan, num_examples: int
    ) -> Iterator[tuple[Row, str]]:
        """The rows whose captions `operation` changes, with the new captions."""
        digest = hashlib.blake2b(digest_size=12)
        for row in rows:
            plan.num_matching += 1
            if _is_unreadable(row):
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

    def _changes(self, edited: Iterable[tuple[Row, str]], changed: list[CaptionRef]) -> Iterator[Change]:
        """The change of each edited row; `changed` gets those whose captions differ from the index."""
        for row, text in edited:
            place = self._place(row)
            data = self.store.read(place)
            if version_of(data) != row.version:
                changed.append(CaptionRef(row.item, place))
            else:
                after = self.store.edited(place, data, text.split("\n"))
                yield Change(row.item, place, data, after)

    @contextmanager
    def _journal(self, changes: Iterable[Change]) -> Generator[Journal]:
        """A new journal with `changes`, on the disk; removed if the edit is refused."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.jsonl"
        with closing(Journal(path)) as journal:
            try:
                journal.add(changes)
                yield journal
            finally:
                if not path.with_suffix(".json").exists():
                    path.unlink()

    def _apply(self, journal: Journal, title: str, undoes: str | None, changed: list[CaptionRef]) -> Edit:
        """Make the changes of the journal."""
        num_changes = sum(1 for _ in journal.changes())
        about_path = journal.path.with_suffix(".json")
        about: dict[str, Any] = {
            "title": title,
            "time": time.time(),
            "num_changed": num_changes,
            "undoes": undoes,
        }
        about_path.write_text(json.dumps(about))
        numbers = count()  # of changes that are passed on until the edit is cancelled
        changes = zip(self.lock.watch("writing", num_changes, journal.changes()), numbers, strict=False)
        written = self._write(change for change, _ in changes)
        about |= {"num_changed": written.num_written, "is_whole": next(numbers) == num_changes}
        about_path.write_text(json.dumps(about))
        for old in sorted(self.folder.glob("*.json"), reverse=True)[KEPT:]:
            old.unlink()
            old.with_suffix(".jsonl").unlink(missing_ok=True)
        changed_meanwhile = tuple(ref.item for ref in (*changed, *written.changed_meanwhile))
        return Edit(journal.path.stem, **about, changed_meanwhile=changed_meanwhile)

    def _write(self, changes: Iterable[Change]) -> Written:
        """Write `changes`, and update the index."""
        path = self.index.dataset.path
        if path is None or self.index.dataset.kind == "folder":
            return self.store.write(changes, self.index.update_captions)
        is_current = self.index.stamp() == stamp_of(path)
        lines: list[Change] = []
        written = self.store.write(changes, lines.extend)
        if is_current and len(lines) == written.num_written:
            self.index.put([row_of(int(change.place), change.after or b"") for change in lines])
            self.index.keep_stamp(stamp_of(path))
        return written

    def _edit(self, edit_id: str) -> Edit:
        path = self.folder / f"{edit_id}.json"
        found = _read(path) if _ID.fullmatch(edit_id) else None
        if found is None or not path.with_suffix(".jsonl").exists():
            raise NoSuchEdit(edit_id)
        return found


def _store_of(dataset: Dataset) -> CaptionStore:
    if dataset.kind == "bucket":
        return StoreCaptions(dataset.url, dataset.storage)
    if dataset.kind == "jsonl" and dataset.path:
        return JsonlCaptions(dataset.path)
    return FolderCaptions(dataset.folder)


def _is_elsewhere(row: Row) -> bool:
    """True if the caption is not in a file beside the image, but in a JSONL of the same bucket."""
    return bool(row.caption) and not row.position and not row.sidecar


def _is_unreadable(row: Row) -> bool:
    """True if the caption file cannot be read or edited, or the line is not a row."""
    if _is_elsewhere(row):
        return True
    if row.position:
        return not row.file
    return bool(row.problem) and not row.caption and row.version != NO_VERSION


def _read(path: Path) -> Edit | None:
    try:
        return Edit(path.stem, **json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
