"""The pictures of a dataset in SQLite: what is known of them, quick to search and to count."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowloom.server.datasets.locations import Dataset
from flowloom.server.datasets.scan import Row, folded
from flowloom.server.problems import Unwritable

Sort = Literal["name", "newest", "largest", "smallest"]
_ORDERS: dict[str, str] = {
    "name": "position, item",
    "newest": "changed DESC, position, item",
    "largest": "width * height DESC, position, item",
    "smallest": "width * height, position, item",
}
_VERSION = 2
_OF_IMAGE = ("width", "height", "damage")
"""What is read from an image's header."""
_HAS_PROBLEM = "(problem != '' OR damage != '')"
_COLUMNS = ", ".join(Row._fields)
_TABLES = f"""
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS images (
    item TEXT NOT NULL, position INTEGER NOT NULL, file TEXT NOT NULL, stamp TEXT NOT NULL, size INTEGER,
    changed REAL, width INTEGER, height INTEGER, caption TEXT NOT NULL, folded TEXT NOT NULL,
    version TEXT NOT NULL, is_tags INTEGER NOT NULL, sidecar TEXT NOT NULL, problem TEXT NOT NULL,
    damage TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS by_place ON images (position, item);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


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


class Table:
    """The pictures of one dataset. Every method may be called from any thread."""

    def __init__(self, dataset: Dataset, state_dir: Path):
        self.dataset = dataset
        name = hashlib.blake2b(dataset.key.encode(), digest_size=12).hexdigest()
        self.folder = state_dir / "datasets" / name
        self.path = self.folder / "index.sqlite"
        self.version = 0
        """Grows with every change."""
        self.is_lost = False
        """Whether it was made anew, and is to be filled."""
        self._writing = threading.RLock()
        self._readers = threading.local()
        self._generation = 0
        self._open()

    def begin_seeing(self) -> None:
        """A scan begins: what it does not see is gone at its end."""
        with self._write() as base:
            base.execute("CREATE TEMP TABLE IF NOT EXISTS seen (item TEXT PRIMARY KEY) WITHOUT ROWID")
            base.execute("DELETE FROM seen")

    def see(self, items: Sequence[str], rows: Sequence[Row]) -> None:
        """These are there; `rows` of them are new or changed."""
        with self._write() as base:
            base.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((item,) for item in items))
            self._put(base, rows)

    def end_seeing(self) -> None:
        """The scan has seen everything."""
        with self._write() as base:
            gone = base.execute("DELETE FROM images WHERE item NOT IN (SELECT item FROM seen)").rowcount
            self.version += bool(gone)

    def put(self, rows: Sequence[Row]) -> None:
        """Take `rows` for what the files say now: whoever edits them tells so."""
        with self._write() as base:
            self._put(base, rows)

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
        # What is known of the image itself stays where only the caption changed.
        base.executemany(
            f"INSERT INTO images ({_COLUMNS}) VALUES ({marks}) ON CONFLICT (position, item) DO UPDATE SET "
            + ", ".join(
                f"{name} = CASE WHEN size IS excluded.size AND changed IS excluded.changed THEN {name} "
                f"ELSE excluded.{name} END"
                if name in _OF_IMAGE
                else f"{name} = excluded.{name}"
                for name in Row._fields
            ),
            rows,
        )
        self.version += 1

    def stamps(self, items: Sequence[str]) -> dict[str, str]:
        """By which stamp each of `items` is known."""
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
        question = f"SELECT count(*), total(caption != ''), total({_HAS_PROBLEM}), total(size) FROM images"
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

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        with self._writing, self._told(), self._base:
            yield self._base

    @contextmanager
    def _read(self) -> Generator[sqlite3.Connection]:
        with self._told():
            own = self._readers
            if getattr(own, "generation", None) != self._generation:
                # Opened anew in each thread, and after the file was: many small questions share one.
                own.generation = self._generation
                own.base = sqlite3.connect(self.path, timeout=10)
            yield own.base

    @contextmanager
    def _told(self) -> Generator[None]:
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
            self._generation += 1
            self.is_lost = True


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
        (_HAS_PROBLEM, wanted.has_problem),
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
