"""The index of a dataset's images, updated from its files.

Everything in it comes from the files, so a damaged or missing index is built again. Small datasets are
scanned for every request, large ones in the background.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from flowloom.datasets.captions.formats import NO_CAPTION, parse_file
from flowloom.datasets.captions.jsonl import stamp_of
from flowloom.datasets.captions.store import Change
from flowloom.server.datasets.locations import Dataset
from flowloom.server.datasets.scan import Row, folded, lines_of, opened, pixels_of, row_of, seen_in, seen_one
from flowloom.server.datasets.subprocess_task import running
from flowloom.server.datasets.table import Table
from flowloom.server.problems import ServiceError

REST = 20
"""A scan is followed by a rest of REST times its duration."""
SHORT_S, LEAST_REST_S = 0.1, 0.3
"""A scan shorter than SHORT_S is repeated for almost every request."""
LEAST_REST_IN_STORES_S = 30.0
SIZES_WAIT_S = 0.2
AT_ONCE = 500


@dataclass
class ScanState:
    """Progress of the scan that updates the index."""

    is_running: bool = False
    phase: Literal["", "names", "sizes"] = ""
    num_done: int = 0
    finished: float = 0.0
    """End of the last scan in seconds since 1970; 0: never."""
    error: str = ""
    names_are_read: threading.Event = field(default_factory=threading.Event)
    all_is_read: threading.Event = field(default_factory=threading.Event)


class Index(Table):
    """The images of one dataset. Every method may be called from any thread."""

    def __init__(self, dataset: Dataset, state_dir: Path):
        super().__init__(dataset, state_dir)
        self.state = ScanState()
        self._starting = threading.Lock()
        self._ended: float | None = None
        """End of the last scan by the monotonic clock."""
        self._length_s = 0.0

    def refresh(self, wait_s: float = 2.0, *, is_strict: bool = False) -> ScanState:
        """Start a scan if one is due, and wait up to `wait_s` for its names and captions.

        Args:
            is_strict: start a scan now, and wait until it has read all names and captions.
        """
        with self._starting:
            if is_strict and self.state.is_running:
                self.state.names_are_read.wait()
            if is_strict or (not self.state.is_running and self._is_due()):
                self.state = ScanState(True, "names", finished=self.state.finished)
                name = "dataset scan"
                threading.Thread(target=self._scan, args=(self.state,), daemon=True, name=name).start()
            state = self.state
        if state.names_are_read.wait(None if is_strict else wait_s):
            state.all_is_read.wait(SIZES_WAIT_S)
        return state

    def _is_due(self) -> bool:
        least = LEAST_REST_IN_STORES_S if self.dataset.kind == "bucket" else LEAST_REST_S
        rest = least if self._length_s < SHORT_S else max(least, REST * self._length_s)
        if self.is_lost:
            self.is_lost = False
            return True
        return self._ended is None or time.monotonic() - self._ended > rest

    def _scan(self, state: ScanState) -> None:
        began = time.monotonic()
        scans = {"folder": self._scan_folder, "jsonl": self._scan_jsonl, "bucket": self._scan_bucket}
        try:
            scans[self.dataset.kind](state)
            self._length_s = time.monotonic() - began
            if self.dataset.kind == "folder":
                state.phase = "sizes"
                state.names_are_read.set()
                self._measure(state)
            state.finished = time.time()
        except (OSError, sqlite3.Error, ServiceError) as error:
            state.error = str(error)
        finally:
            self._ended = time.monotonic()
            state.is_running, state.phase = False, ""
            state.names_are_read.set()
            state.all_is_read.set()

    def _scan_folder(self, state: ScanState) -> None:
        top = self.dataset.folder
        self.begin_seeing()
        for batch in seen_in(top):
            known = self.stamps([seen.item for seen in batch])
            rows = [opened(top, seen) for seen in batch if known.get(seen.item) != seen.stamp]
            self.see([seen.item for seen in batch], rows)
            state.num_done += len(batch)
        self.end_seeing()

    def _scan_jsonl(self, state: ScanState) -> None:
        assert self.dataset.path
        stamp = stamp_of(self.dataset.path)
        with self._write() as base:
            if base.execute("SELECT value FROM notes WHERE name = 'stamp'").fetchall() == [(stamp,)]:
                return
            base.execute("DELETE FROM images")
            rows: list[Row] = []
            for number, line in lines_of(self.dataset.path):
                rows.append(row_of(number, line))
                if len(rows) == AT_ONCE:
                    state.num_done += len(rows)
                    self._put(base, rows)
                    rows.clear()
            self._put(base, rows)
            base.execute("INSERT OR REPLACE INTO notes VALUES ('stamp', ?)", (stamp,))
            self.version += 1

    def _scan_bucket(self, state: ScanState) -> None:
        request = {
            "verb": "list",
            "url": self.dataset.url,
            "storage": self.dataset.storage,
            "index": str(self.path),
        }
        self.begin_seeing()
        with running("flowloom.server.datasets.storage_process", json.dumps(request)) as lines:
            while batch := [json.loads(line) for line in islice(lines, AT_ONCE)]:
                rows = [Row._make(row) for row in batch if len(row) > 1]
                self.see([row[0] for row in batch], rows)
                state.num_done += len(batch)
        self.end_seeing()

    def _measure(self, state: ScanState) -> None:
        """Read the headers of images whose size is not known yet."""
        state.num_done, last = 0, 0
        query = "SELECT rowid, item FROM images WHERE rowid > ? AND width IS NULL ORDER BY rowid LIMIT ?"
        while self.state is state:
            with self._read() as base:
                found = base.execute(query, (last, AT_ONCE)).fetchall()
            if not found:
                return
            measured: list[tuple[int, int, str, int]] = []
            for last, item in found:
                width, height, reason = pixels_of(self.dataset.folder / item)
                measured.append((width, height, reason, last))
            with self._write() as base:
                change = (
                    "UPDATE images SET width = ?, height = ?, damage = ? WHERE rowid = ? AND width IS NULL"
                )
                base.executemany(change, measured)
                self.version += 1
            state.num_done += len(found)

    def update_captions(self, changes: Iterable[Change]) -> None:
        """Record the captions that were just written for images of a folder or bucket."""
        if self.dataset.kind == "bucket":
            self.put([_captioned(row, change) for change in changes if (row := self.get(change.item))])
            return
        folder = self.dataset.folder
        sidecars = ((change.item, change.place if change.after is not None else "") for change in changes)
        images = (seen for item, sidecar in sidecars for seen in seen_one(folder, item, sidecar))
        self.put([opened(folder, image) for image in images])


def _captioned(row: Row, change: Change) -> Row:
    """`row` with the caption of `change`, and an old stamp, so that the next scan reads the object."""
    name = change.place.rpartition("/")[2]
    caption = NO_CAPTION if change.after is None else parse_file(name, change.after)
    return row._replace(
        stamp=row.stamp.partition("|")[0],
        caption=caption.text,
        folded=folded(caption.text),
        version=caption.version,
        is_tags=caption.is_tags,
        sidecar="" if change.after is None else change.place,
        problem=caption.problem,
    )
