"""A folder on a fast disk with copies of data from stores; the least recently used are deleted first."""

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
from flowloom.files import use_write_ahead_log

ABANDONED_S = 600
"""Age at which a partial file is taken for one of a killed process."""
USES_PER_WRITE = 256
"""Number of uses that are written to the index together."""
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
class CachedFile:
    """A file in the folder, unless another process has removed it since."""

    etag: str
    path: Path
    size: int
    compared_ns: int
    """Time of the last comparison with the store that found no change, in ns since 1970."""


class DiskCache:
    """Contents by address, for all threads and processes that use the folder.

    Files are added and removed within transactions of an SQLite index, so that they never exceed the limit.
    A row without its complete file is a miss, and a file without a row is removed when the folder is opened,
    so a kill at any moment does no harm.
    """

    def __init__(self, folder: Path, limit_bytes: int):
        """
        Raises:
            SourceError: the folder cannot be used.
        """
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.fault: str | None = None
        """Reason why nothing more is added; None without a fault."""
        self._lock = threading.Lock()
        self._uses: dict[str, int] = {}
        self._comparisons: dict[str, int] = {}
        self._numbers = itertools.count()
        try:
            (folder / "partial").mkdir(parents=True, exist_ok=True)
            self._index = sqlite3.connect(folder / "index.sqlite", timeout=60, check_same_thread=False)
            self._index.isolation_level = None
            use_write_ahead_log(self._index, 60)
            self._index.execute("PRAGMA synchronous = NORMAL")
            self._index.executescript(SCHEMA)
            self._sweep()
        except (OSError, sqlite3.Error) as error:
            hint = "Set storage.cache_dir to a writable folder, or empty this one."
            raise SourceError(f"{folder}: cannot be used as a cache: {error}. {hint}") from error

    @property
    def total_bytes(self) -> int:
        """Size of all cached files."""
        with self._lock:
            return int(self._index.execute("SELECT bytes FROM total").fetchone()[0])

    def find(self, address: str) -> CachedFile | None:
        """The cached file of `address`."""
        key = _digest(address)
        with self._lock:
            try:
                query = "SELECT etag, size, compared FROM kept WHERE key = ?"
                row = self._index.execute(query, (key,)).fetchone()
            except sqlite3.Error as error:
                self._disable(error)
                return None
            compared_ns = self._comparisons.get(key, 0)
        if not row:
            return None
        etag, size, recorded_ns = row
        return CachedFile(etag, self._path(key, etag), size, max(compared_ns, recorded_ns))

    def read(self, address: str, cached: CachedFile, *, was_compared: bool = False) -> bytes | None:
        """Its content, or None if it is gone; `was_compared`: the store has just confirmed it."""
        try:
            content = cached.path.read_bytes()
        except OSError:
            return None
        if len(content) != cached.size:
            return None
        with self._lock:
            key = _digest(address)
            self._uses[key] = time.time_ns()
            if was_compared:
                self._comparisons[key] = time.time_ns()
            if len(self._uses) >= USES_PER_WRITE:
                self._change(self._record_uses)
        return content

    def add(self, address: str, etag: str, content: bytes) -> None:
        """Add `content` after making room for it, unless it is larger than the limit."""
        if self.fault or len(content) > self.limit_bytes:
            return
        key = _digest(address)
        path = self._path(key, etag)
        partial = self.folder / "partial" / f"{os.getpid()}-{next(self._numbers)}"

        def move_in() -> None:
            self._record_uses()
            self._remove(key)
            self._make_room(len(content))
            now = time.time_ns()
            row = (key, etag, len(content), now, now)
            self._index.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?)", row)
            path.parent.mkdir(exist_ok=True)
            partial.replace(path)

        # Written before the transaction, so that other processes do not wait for the disk.
        try:
            partial.write_bytes(content)
        except OSError as error:
            self._disable(error)
        else:
            with self._lock:
                self._change(move_in)
        if self.fault:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Record the last uses and close the index."""
        with self._lock:
            self._change(self._record_uses)
            self._index.close()

    def _change(self, change: Callable[[], None]) -> None:
        """Run `change` as one transaction, exclusive among all processes."""
        try:
            self._index.execute("BEGIN IMMEDIATE")
            try:
                change()
                self._index.execute("COMMIT")
            except BaseException:
                self._index.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            self._disable(error)

    def _make_room(self, size: int) -> None:
        while self._index.execute("SELECT bytes FROM total").fetchone()[0] + size > self.limit_bytes:
            query = "SELECT key FROM kept ORDER BY used LIMIT 1"
            self._remove(self._index.execute(query).fetchone()[0])

    def _remove(self, key: str) -> None:
        row = self._index.execute("SELECT etag FROM kept WHERE key = ?", (key,)).fetchone()
        if row:
            self._path(key, row[0]).unlink(missing_ok=True)
            self._index.execute("DELETE FROM kept WHERE key = ?", (key,))

    def _record_uses(self) -> None:
        for column, times in (("used", self._uses), ("compared", self._comparisons)):
            rows = [(when, key) for key, when in times.items()]
            self._index.executemany(f"UPDATE kept SET {column} = ? WHERE key = ?", rows)
            times.clear()

    def _sweep(self) -> None:
        """Remove leftovers of killed processes: incomplete files, and files without a row."""
        for path in (self.folder / "partial").iterdir():
            # Running processes may finish theirs at the same time.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > ABANDONED_S:
                    path.unlink()
        files = set(self.folder.glob("??/*"))
        rows = self._index.execute("SELECT key, etag FROM kept")
        for path in files.difference(self._path(key, etag) for key, etag in rows):
            path.unlink(missing_ok=True)

    def _path(self, key: str, etag: str) -> Path:
        """The path includes the etag, so that writers of other contents use other files."""
        return self.folder / key[:2] / f"{key}-{_digest(etag)[:8]}"

    def _disable(self, error: Exception) -> None:
        self.fault = self.fault or f"{self.folder}: nothing more is added: {error}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
