"""A folder on a fast disk that keeps what was read from stores; above its size the longest unused goes."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowloom.errors import SourceError

ABANDONED_S = 600
"""A partial file of this age was left by a process that was killed."""
NOTED_AT_ONCE = 256
"""Uses that are noted together."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    key TEXT PRIMARY KEY, etag TEXT NOT NULL, size INTEGER NOT NULL, used INTEGER NOT NULL,
    compared INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kept_by_use ON kept (used);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON kept BEGIN UPDATE total SET bytes = bytes + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS gone AFTER DELETE ON kept BEGIN UPDATE total SET bytes = bytes - OLD.size; END;
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """Something the folder holds, if nobody has taken it away since."""

    etag: str
    path: Path
    size: int
    compared_ns: int
    """When it was last found to be what the store has, in ns since 1970."""


class DiskCache:
    """Contents by address, for all threads and processes that use the folder.

    An index in SQLite says what there is; files come and go within its transactions, so that they never
    exceed the limit. A row without its whole file is a miss, a file without a row is swept away when the
    folder is opened: a kill at any moment costs nothing but that.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        """
        Raises:
            SourceError: the folder cannot be used.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.fault: str | None = None
        """Why nothing is kept any more; null while all is well."""
        self._lock = threading.Lock()
        self._uses: dict[str, int] = {}
        self._comparisons: dict[str, int] = {}
        self._numbers = itertools.count()
        try:
            (folder / "partial").mkdir(parents=True, exist_ok=True)
            self._index = sqlite3.connect(folder / "index.sqlite", timeout=60, check_same_thread=False)
            self._index.isolation_level = None
            self._index.execute("PRAGMA journal_mode = WAL")
            self._index.execute("PRAGMA synchronous = NORMAL")
            self._index.executescript(SCHEMA)
            self._sweep()
        except (OSError, sqlite3.Error) as error:
            hint = "Set storage.cache_dir to a folder that can be written, or empty this one."
            raise SourceError(f"{folder}: no cache can be kept there: {error}. {hint}") from error

    @property
    def total_bytes(self) -> int:
        """Size of all that is kept."""
        with self._lock:
            return int(self._index.execute("SELECT bytes FROM total").fetchone()[0])

    def look(self, address: str) -> Kept | None:
        """What is kept of `address`."""
        key = _digest(address)
        with self._lock:
            try:
                query = "SELECT etag, size, compared FROM kept WHERE key = ?"
                row = self._index.execute(query, (key,)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
            compared_ns = self._comparisons.get(key, 0)
        if not row:
            return None
        etag, size, noted_ns = row
        return Kept(etag, self._path(key, etag), size, max(compared_ns, noted_ns))

    def read(self, address: str, kept: Kept, *, was_compared: bool = False) -> bytes | None:
        """Its content, or None when it is not there any more; `was_compared`: the store has the same now."""
        try:
            content = kept.path.read_bytes()
        except OSError:
            return None
        if len(content) != kept.size:
            return None
        with self._lock:
            key = _digest(address)
            self._uses[key] = time.time_ns()
            if was_compared:
                self._comparisons[key] = time.time_ns()
            if len(self._uses) >= NOTED_AT_ONCE:
                self._change(self._note_uses)
        return content

    def keep(self, address: str, etag: str, content: bytes) -> None:
        """Keep `content`, after making room for it; nothing is kept that is larger than the limit."""
        if self.fault or len(content) > self.limit_bytes:
            return
        key = _digest(address)
        path = self._path(key, etag)
        partial = self.folder / "partial" / f"{os.getpid()}-{next(self._numbers)}"

        def take_in() -> None:
            self._note_uses()
            self._remove(key)
            self._make_room(len(content))
            now = time.time_ns()
            row = (key, etag, len(content), now, now)
            self._index.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?)", row)
            path.parent.mkdir(exist_ok=True)
            partial.replace(path)

        try:
            partial.write_bytes(content)
        except OSError as error:
            self._give_up(error)
        else:
            with self._lock:
                self._change(take_in)
        if self.fault:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Note the last uses and close the index."""
        with self._lock:
            self._change(self._note_uses)
            self._index.close()

    def _change(self, change: Callable[[], None]) -> None:
        """Do `change` as one transaction, alone among all processes."""
        try:
            self._index.execute("BEGIN IMMEDIATE")
            try:
                change()
                self._index.execute("COMMIT")
            except BaseException:
                self._index.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def _make_room(self, size: int) -> None:
        while self._index.execute("SELECT bytes FROM total").fetchone()[0] + size > self.limit_bytes:
            query = "SELECT key FROM kept ORDER BY used LIMIT 1"
            self._remove(self._index.execute(query).fetchone()[0])

    def _remove(self, key: str) -> None:
        row = self._index.execute("SELECT etag FROM kept WHERE key = ?", (key,)).fetchone()
        if row:
            self._path(key, row[0]).unlink(missing_ok=True)
            self._index.execute("DELETE FROM kept WHERE key = ?", (key,))

    def _note_uses(self) -> None:
        for column, times in (("used", self._uses), ("compared", self._comparisons)):
            rows = [(when, key) for key, when in times.items()]
            self._index.executemany(f"UPDATE kept SET {column} = ? WHERE key = ?", rows)
            times.clear()

    def _sweep(self) -> None:
        """Take away what killed processes left: half-written files, and whole ones that no row tells of."""
        for path in (self.folder / "partial").iterdir():
            # Of those that live, others finish theirs while we look.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
        files = set(self.folder.glob("??/*"))
        rows = self._index.execute("SELECT key, etag FROM kept")
        for path in files.difference(self._path(key, etag) for key, etag in rows):
            path.unlink(missing_ok=True)

    def _path(self, key: str, etag: str) -> Path:
        """Content and etag belong together, whoever writes: the name has both."""
        return self.folder / key[:2] / f"{key}-{_digest(etag)[:8]}"

    def _give_up(self, error: Exception) -> None:
        self.fault = self.fault or f"{self.folder}: nothing more is kept: {error}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
