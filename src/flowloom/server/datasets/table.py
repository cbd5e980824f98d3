"""The images of a dataset in SQLite, for fast search and counts."""

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
"""Columns that are read from an image's header."""
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
    """A filter of images; empty: all."""

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
    """Minimum of the shorter side in pixels."""
    max_side: int = 0
    """Maximum of the longer side in pixels; 0: any."""
    items: tuple[str, ...] = ()
    """Only these."""


class Table:
    """The images of one dataset. Every method may be called from any thread."""

    def __init__(self, dataset: Dataset, state_dir: Path):
        self.dataset = dataset
        name = hashlib.blake2b(dataset.key.encode(), digest_size=12).hexdigest()
        self.folder = state_dir / "datasets" / name
        self.path = self.folder / "index.sqlite"
        self.version: int = 0
        """Increases with every change."""
        self.is_lost = False
        """True if it was created again, and must be filled."""
        self._writing = threading.RLock()
        self._readers = threading.local()
        self._generation = 0
        self._open()

    def begin_seeing(self) -> None:
        """Begin a scan: images that it does not find are removed at its end."""
        with self._write() as base:
            base.execute("CREATE TEMP TABLE IF NOT EXISTS seen (item TEXT PRIMARY KEY) WITHOUT ROWID")
            base.execute("DELETE FROM seen")

    def see(self, items: Sequence[str], rows: Sequence[Row]) -> None:
        """Record `items` that the scan found; `rows` of them are new or changed."""
        with self._write() as base:
            base.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((item,) for item in items))
            self._put(base, rows)

    def end_seeing(self) -> None:
        """End the scan."""
        with self._write() as base:
            num_removed = base.execute(
                "DELETE FROM images WHERE item NOT IN (SELECT item FROM seen)"
            ).rowcount
            self.version += bool(num_removed)

    def put(self, rows: Sequence[Row]) -> None:
        """Replace `rows` after an edit of their files."""
        with self._write() as base:
            self._put(base, rows)

    def stamp(self) -> str:
        """The state of the JSONL that the index agrees with; empty: none."""
        with self._read() as base:
            found = base.execute("SELECT value FROM notes WHERE name = 'stamp'").fetchone()
        return found[0] if found else ""

    def keep_stamp(self, stamp: str) -> None:
        """Record the state of the JSONL that the index agrees with."""
        with self._write() as base:
            base.execute("INSERT OR REPLACE INTO notes VALUES ('stamp', ?)", (stamp,))

    def _put(self, base: sqlite3.Connection, rows: Sequence[Row]) -> None:
        if not rows:
            return
        marks = ", ".join("?" * len(Row._fields))
        # Facts of the image itself stay if only the caption changed.
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
        """The recorded stamps of `items`."""
        marks = ", ".join("?" * len(items))
        with self._read() as base:
            return dict(
                base.execute(
                    f"SELECT item, stamp FROM images WHERE item IN ({marks}) AND position = 0", items
                )
            )

    def page(self, filter: Filter, sort: Sort, skip: int, limit: int) -> tuple[int, list[Row]]:
        """The number of images that the filter matches, and a page of them."""
        where, values = _condition(filter)
        with self._read() as base:
            (total,) = base.execute(f"SELECT count(*) FROM images WHERE {where}", values).fetchone()
            order = f"ORDER BY {_ORDERS[sort]} LIMIT ? OFFSET ?"
            query = f"SELECT {_COLUMNS} FROM images WHERE {where} {order}"
            return total, [_row(found) for found in base.execute(query, (*values, limit, skip))]

    def get(self, item: str) -> Row | None:
        """The row of the image `item`."""
        with self._read() as base:
            position = (
                int(item) if self.dataset.kind == "jsonl" and item.isdecimal() and len(item) < 19 else 0
            )
            query = f"SELECT {_COLUMNS} FROM images WHERE position = ? AND item = ?"
            found = base.execute(query, (position, item)).fetchone()
        return _row(found) if found else None

    def rows(self, filter: Filter) -> Iterator[Row]:
        """All images that the filter matches, in order."""
        where, values = _condition(filter)
        with self._read() as base:
            query = f"SELECT {_COLUMNS} FROM images WHERE {where} ORDER BY position, item"
            for found in base.execute(query, values):
                yield _row(found)

    def namesakes(self, stem: str) -> list[str]:
        """The images whose name is `stem` and a suffix."""
        with self._read() as base:
            query = "SELECT item FROM images WHERE position = 0 AND item > ? AND item < ?"
            found = [item for (item,) in base.execute(query, (f"{stem}.", f"{stem}/"))]
        return [item for item in found if item.rpartition(".")[0] == stem]

    def totals(self) -> dict[str, int]:
        """The number of images, of those with a caption, of those with a problem, and of bytes."""
        names = ("images", "captioned", "problems", "bytes")
        query = f"SELECT count(*), total(caption != ''), total({_HAS_PROBLEM}), total(size) FROM images"
        with self._read() as base:
            found = base.execute(query).fetchone()
        return {name: int(number) for name, number in zip(names, found, strict=True)}

    def tags(self, filter: Filter) -> tuple[int, Counter[str]]:
        """The number of tag-based captions, and of those with each tag."""
        where, values = _condition(filter)
        counts: Counter[str] = Counter()
        num_captions = 0
        with self._read() as base:
            query = f"SELECT caption FROM images WHERE is_tags AND {where}"
            for (caption,) in base.execute(query, values):
                num_captions += 1
                counts.update({tag.strip() for tag in caption.replace("\n", ",").split(",")})
        del counts[""]
        return num_captions, counts

    @contextmanager
    def _write(self) -> Generator[sqlite3.Connection]:
        with self._writing, self._as_problems(), self._base:
            yield self._base

    @contextmanager
    def _read(self) -> Generator[sqlite3.Connection]:
        with self._as_problems():
            reader = self._readers
            if getattr(reader, "generation", None) != self._generation:
                # One connection per thread and file, shared by many small queries.
                reader.generation = self._generation
                reader.base = sqlite3.connect(self.path, timeout=10)
            yield reader.base

    @contextmanager
    def _as_problems(self) -> Generator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            is_lost = "no such table" in str(error) or not self.path.exists()
            if isinstance(error, sqlite3.OperationalError) and not is_lost:
                raise _unwritable(self.path, error) from error
            self._recreate()
            raise Unwritable(f"{self.path} was damaged and is being built again.", "Try again.") from None

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._base = self._connect()
        except sqlite3.OperationalError as error:
            raise _unwritable(self.path, error) from error
        except sqlite3.DatabaseError:
            self._recreate()

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

    def _recreate(self) -> None:
        with self._writing:
            with suppress(sqlite3.Error, AttributeError):
                self._base.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._base = self._connect()
            self._generation += 1
            self.is_lost = True


def _unwritable(path: Path, error: sqlite3.Error) -> Unwritable:
    return Unwritable(
        f"{path}: {error}.", "Free disk space, or give the studio's user permission to write there."
    )


def _row(found: Sequence[Any]) -> Row:
    return Row._make(found)._replace(is_tags=bool(found[Row._fields.index("is_tags")]))


def _condition(filter: Filter) -> tuple[str, list[Any]]:
    """The filter as a condition of SQL, with its values."""
    parts: list[tuple[str, list[Any]]] = [("1", [])]
    if filter.text:
        text = folded(filter.text)[1:-1]
        parts.append(("(instr(folded, ?) OR instr(lower(file), ?))", [text, filter.text.lower()]))
    parts += [("instr(folded, ?)", [folded(tag)]) for tag in filter.tags]
    parts += [("NOT instr(folded, ?)", [folded(tag)]) for tag in filter.without_tags]
    for name, value in (
        ("caption != ''", filter.has_caption),
        ("is_tags", filter.is_tags),
        (_HAS_PROBLEM, filter.has_problem),
    ):
        if value is not None:
            parts.append((f"({name}) = ?", [int(value)]))
    if filter.folder:
        prefix = filter.folder.strip("/") + "/"
        parts.append(("substr(file, 1, ?) = ?", [len(prefix), prefix]))
    if filter.min_side:
        parts.append(("min(width, height) >= ?", [filter.min_side]))
    if filter.max_side:
        parts.append(("max(width, height) BETWEEN 1 AND ?", [filter.max_side]))
    if filter.items:
        parts.append((f"item IN ({', '.join('?' * len(filter.items))})", list(filter.items)))
    return " AND ".join(part for part, _ in parts), [value for _, values in parts for value in values]
