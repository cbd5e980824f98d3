"""The list of a data set's pictures in SQLite: a page of a hundred thousand comes at once.

It holds nothing that the files do not: it is made anew whenever it is damaged or missing. Small sets are
looked at again for every request, large ones behind the scenes.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowloom.server.datasets.places import DataSet
from flowloom.server.datasets.scan import Row, Seen, folded, lines_of, opened, pixels_of, row_of, seen_in
from flowloom.server.problems import ServiceError, Unwritable

Sort = Literal["name", "newest", "largest", "smallest"]
_ORDERS: dict[str, str] = {
    "name": "position, item",
    "newest": "changed DESC, position, item",
    "largest": "width * height DESC, position, item",
    "smallest": "width * height, position, item",
}
_VERSION = 1
_COLUMNS = ", ".join(Row._fields)
_TABLES = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS images (
    item TEXT NOT NULL, position INTEGER NOT NULL, file TEXT NOT NULL, stamp TEXT NOT NULL, size INTEGER,
    changed REAL, width INTEGER, height INTEGER, caption TEXT NOT NULL, folded TEXT NOT NULL,
    version TEXT NOT NULL, is_tags INTEGER NOT NULL, sidecar TEXT NOT NULL, problem TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS by_place ON images (position, item);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
REST = 20
"""A scan is followed by a rest of so many times its length."""
SHORT_S, LEAST_REST_S = 0.1, 0.3
"""A short scan is done again for nearly every request."""
SIZES_WAIT_S = 0.2
AT_ONCE = 500


@dataclass(frozen=True)
class Filter:
    """Which pictures are meant; all where nothing is said."""

    text: str = ""
    tags: tuple[str, ...] = ()
    """All of these."""
    without_tags: tuple[str, ...] = ()
    """None of these."""
    has_caption: bool | None = None
    is_tags: bool | None = None
    has_problem: bool | None = None
    folder: str = ""
    min_side: int = 0
    """Pixels of the shorter side."""
    max_side: int = 0
    """Pixels of the longer side; 0: any."""
    items: tuple[str, ...] = ()
    """Only these."""


@dataclass
class ScanState:
    """How far the list agrees with the files."""

    is_running: bool = False
    phase: Literal["", "names", "sizes"] = ""
    num_done: int = 0
    finished: float = 0.0
    """When the last scan ended, in seconds since 1970; 0: never."""
    error: str = ""
    names_are_read: threading.Event = field(default_factory=threading.Event)
    all_is_read: threading.Event = field(default_factory=threading.Event)


class Index:
    """The pictures of one data set. Every method may be called from any thread."""

    def __init__(self, dataset: DataSet, state_dir: Path):
        self.dataset = dataset
        name = hashlib.blake2b(dataset.key.encode(), digest_size=12).hexdigest()
        self.folder = state_dir / "datasets" / name
        self.path = self.folder / "index.sqlite"
        self.state = ScanState()
        self.version = 0
        """Grows with every change."""
        self._writing = threading.RLock()
        self._starting = threading.Lock()
        self._rested: float | None = None
        """When the last scan ended, by a clock that nobody sets."""
        self._length_s = 0.0
        self._open()

    def refresh(self, wait_s: float = 2.0, *, is_strict: bool = False) -> ScanState:
        """Have the files looked at again where that is due, and wait a little for what they say.

        Args:
            is_strict: wait until a scan that begins now has read all names and captions.
        """
        with self._starting:
            if is_strict and self.state.is_running:
                self.state.names_are_read.wait()
            if is_strict or (not self.state.is_running and self._is_due()):
                self.state = ScanState(True, "names", finished=self.state.finished)
                name = "data set scan"
                threading.Thread(target=self._scan, args=(self.state,), daemon=True, name=name).start()
            state = self.state
        if state.names_are_read.wait(None if is_strict else wait_s):
            state.all_is_read.wait(SIZES_WAIT_S)
        return state

    def _is_due(self) -> bool:
        rest = LEAST_REST_S if self._length_s < SHORT_S else REST * self._length_s
        return self._rested is None or time.monotonic() - self._rested > rest

    def _scan(self, state: ScanState) -> None:
        began = time.monotonic()
        try:
            if self.dataset.kind == "folder":
                self._scan_folder(state)
                self._length_s = time.monotonic() - began
                state.phase = "sizes"
                state.names_are_read.set()
                self._measure(state)
            elif self.dataset.kind == "jsonl":
                self._scan_jsonl(state)
            self._rested, state.finished = time.monotonic(), time.time()
        except (OSError, sqlite3.Error, ServiceError) as error:
            state.error = f"{type(error).__name__}: {error}"
        finally:
            state.is_running, state.phase = False, ""
            state.names_are_read.set()
            state.all_is_read.set()

    def _scan_folder(self, state: ScanState) -> None:
        top = self.dataset.folder
        with self._write() as base:
            base.execute("CREATE TEMP TABLE IF NOT EXISTS seen (item TEXT PRIMARY KEY) WITHOUT ROWID")
            base.execute("DELETE FROM seen")
        for batch in seen_in(top):
            known = self._stamps([seen.item for seen in batch])
            rows = [opened(top, seen) for seen in batch if known.get(seen.item) != seen.stamp]
            with self._write() as base:
                base.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((seen.item,) for seen in batch))
                self._put(base, rows)
            state.num_done += len(batch)
        with self._write() as base:
            gone = base.execute("DELETE FROM images WHERE item NOT IN (SELECT item FROM seen)").rowcount
            self.version += bool(gone)

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

    def _measure(self, state: ScanState) -> None:
        """Read the headers of pictures whose size is not known yet."""
        state.num_done, last = 0, 0
        question = (
            "SELECT rowid, item, problem FROM images WHERE rowid > ? AND width IS NULL ORDER BY rowid LIMIT ?"
        )
        while self.state is state:
            with self._read() as base:
                found = base.execute(question, (last, AT_ONCE)).fetchall()
            if not found:
                return
            measured = []
            for last, item, problem in found:
                width, height, reason = pixels_of(self.dataset.folder / item)
                measured.append((width, height, problem or reason, last))
            with self._write() as base:
                change = (
                    "UPDATE images SET width = ?, height = ?, problem = ? WHERE rowid = ? AND width IS NULL"
                )
                base.executemany(change, measured)
                self.version += 1
            state.num_done += len(found)

    def put(self, rows: Sequence[Row]) -> None:
        """Take `rows` for what the files say now: whoever edits them tells so."""
        with self._write() as base:
            self._put(base, rows)

    def look_again(self, seen: Iterable[Seen]) -> None:
        """Open what was just written."""
        self.put([opened(self.dataset.folder, one) for one in seen])

    def stamp(self) -> str:
        """Which state of a JSONL the list agrees with; empty: none."""
        with self._read() as base:
            found = base.execute("SELECT value FROM notes WHERE name = 'stamp'").fetchone()
        return found[0] if found else ""

    def keep_stamp(self, stamp: str) -> None:
        """The list agrees with this state of the JSONL."""
        with self._write() as base:
            base.execute("INSERT OR REPLACE INTO notes VALUES ('stamp', ?)", (stamp,))

    def _put(self, base: sqlite3.Connection, rows: Sequence[Row]) -> None:
        if not rows:
            return
        marks = ", ".join("?" * len(Row._fields))
        # What is known of the picture's size stays where only the caption changed.
        base.executemany(
            f"INSERT INTO images ({_COLUMNS}) VALUES ({marks}) ON CONFLICT (position, item) DO UPDATE SET "
            "width = CASE WHEN size IS excluded.size AND changed IS excluded.changed THEN nullif(width, 0) "
            "ELSE excluded.width END, "
            "height = CASE WHEN size IS excluded.size AND changed IS excluded.changed THEN nullif(height, 0) "
            "ELSE excluded.height END, "
            + ", ".join(
                f"{name} = excluded.{name}" for name in Row._fields if name not in ("width", "height")
            ),
            rows,
        )
        self.version += 1

    def _stamps(self, items: Sequence[str]) -> dict[str, str]:
        marks = ", ".join("?" * len(items))
        with self._read() as base:
            return dict(
                base.execute(
                    f"SELECT item, stamp FROM images WHERE item IN ({marks}) AND position = 0", items
                )
            )

    def page(self, wanted: Filter, sort: Sort, skip: int, limit: int) -> tuple[int, list[Row]]:
        """How many pictures are meant, and some of them."""
        where, values = _condition(wanted)
        with self._read() as base:
            (total,) = base.execute(f"SELECT count(*) FROM images WHERE {where}", values).fetchone()
            order = f"ORDER BY {_ORDERS[sort]} LIMIT ? OFFSET ?"
            question = f"SELECT {_COLUMNS} FROM images WHERE {where} {order}"
            return total, [_row(found) for found in base.execute(question, (*values, limit, skip))]

    def get(self, item: str) -> Row | None:
        """The picture `item`."""
        with self._read() as base:
            position = (
                int(item) if self.dataset.kind == "jsonl" and item.isdecimal() and len(item) < 19 else 0
            )
            question = f"SELECT {_COLUMNS} FROM images WHERE position = ? AND item = ?"
            found = base.execute(question, (position, item)).fetchone()
        return _row(found) if found else None

    def rows(self, wanted: Filter) -> Iterator[Row]:
        """All pictures that are meant, in order."""
        where, values = _condition(wanted)
        with self._read() as base:
            question = f"SELECT {_COLUMNS} FROM images WHERE {where} ORDER BY position, item"
            for found in base.execute(question, values):
                yield _row(found)

    def namesakes(self, stem: str) -> list[str]:
        """The pictures whose name is `stem` and a suffix."""
        with self._read() as base:
            question = "SELECT item FROM images WHERE position = 0 AND item > ? AND item < ?"
            found = [item for (item,) in base.execute(question, (f"{stem}.", f"{stem}/"))]
        return [item for item in found if item.rpartition(".")[0] == stem]

    def totals(self) -> dict[str, int]:
        """Pictures, those with a caption, those with a problem, and bytes."""
        names = ("images", "captioned", "problems", "bytes")
        question = "SELECT count(*), total(caption != ''), total(problem != ''), total(size) FROM images"
        with self._read() as base:
            found = base.execute(question).fetchone()
        return {name: int(number) for name, number in zip(names, found, strict=True)}

    def tags(self, wanted: Filter) -> tuple[int, Counter[str]]:
        """In how many captions of tags each tag stands, and how many captions that are."""
        where, values = _condition(wanted)
        counts: Counter[str] = Counter()
        num_captions = 0
        with self._read() as base:
            question = f"SELECT caption FROM images WHERE is_tags AND {where}"
            for (caption,) in base.execute(question, values):
                num_captions += 1
                counts.update({tag.strip() for tag in caption.replace("\n", ",").split(",")})
        del counts[""]
        return num_captions, counts

    def destroy(self) -> None:
        """Forget everything, the journal of edits included."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._writing, self._told(), self._base:
            yield self._base

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._told(), closing(sqlite3.connect(self.path, timeout=10)) as base:
            yield base

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            is_lost = "no such table" in str(error) or not self.path.exists()
            if isinstance(error, sqlite3.OperationalError) and not is_lost:
                raise _unwritable(self.path, error) from error
            self._remake()
            raise Unwritable(f"{self.path} was damaged; it is being made anew.", "Ask again.") from None

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._base = self._connect()
        except sqlite3.OperationalError as error:
            raise _unwritable(self.path, error) from error
        except sqlite3.DatabaseError:
            self._remake()

    def _connect(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.path, timeout=10, check_same_thread=False)
        try:
            (version,) = base.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError("of another version")
            base.executescript(_TABLES)
        except sqlite3.DatabaseError:
            base.close()
            raise
        return base

    def _remake(self) -> None:
        with self._writing:
            with suppress(sqlite3.Error, AttributeError):
                self._base.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            for end in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)
            self._base = self._connect()
            self._rested = None


def stamp_of(jsonl: Path) -> str:
    """What changes when the file does."""
    status = jsonl.stat()
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


def _unwritable(path: Path, error: sqlite3.Error) -> Unwritable:
    return Unwritable(f"{path}: {error}.", "Make room on the disk, or give the right to write there.")


def _row(found: Sequence[Any]) -> Row:
    return Row._make(found)._replace(is_tags=bool(found[Row._fields.index("is_tags")]))


def _condition(wanted: Filter) -> tuple[str, list[Any]]:
    """What SQLite is asked for."""
    parts: list[tuple[str, list[Any]]] = [("1", [])]
    if wanted.text:
        text = folded(wanted.text)[1:-1]
        parts.append(("(instr(folded, ?) OR instr(lower(file), ?))", [text, wanted.text.lower()]))
    parts += [("instr(folded, ?)", [folded(tag)]) for tag in wanted.tags]
    parts += [("NOT instr(folded, ?)", [folded(tag)]) for tag in wanted.without_tags]
    for name, value in (
        ("caption != ''", wanted.has_caption),
        ("is_tags", wanted.is_tags),
        ("problem != ''", wanted.has_problem),
    ):
        if value is not None:
            parts.append((f"({name}) = ?", [int(value)]))
    if wanted.folder:
        prefix = wanted.folder.strip("/") + "/"
        parts.append(("substr(file, 1, ?) = ?", [len(prefix), prefix]))
    if wanted.min_side:
        parts.append(("min(width, height) >= ?", [wanted.min_side]))
    if wanted.max_side:
        parts.append(("max(width, height) BETWEEN 1 AND ?", [wanted.max_side]))
    if wanted.items:
        parts.append((f"item IN ({', '.join('?' * len(wanted.items))})", list(wanted.items)))
    return " AND ".join(part for part, _ in parts), [value for _, values in parts for value in values]
