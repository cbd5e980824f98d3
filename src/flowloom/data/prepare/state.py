"""What earlier builds read, so that a rerun reads only what changed: an SQLite file beside the output."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

VERSION = 1
SUFFIX = ".state"
_ROOT = "\0root"
"""Key of the folder that the rows' names are relative to; no path begins so."""
_AT_ONCE = 500
"""Keys in one question; SQLite takes 999 on old systems."""


class State:
    """Values by key, each valid for one stamp of what it was read from; committed chunk by chunk.

    The file may be deleted at any time: everything is read again. Not for several threads.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._open()
        except sqlite3.OperationalError:
            raise  # the folder is read only, the disk full: the file may be good
        except sqlite3.DatabaseError:
            # Damaged, or something else of that name: it holds nothing that cannot be read again.
            path.unlink()
            self._open()

    def _open(self) -> None:
        self._base = sqlite3.connect(self.path)
        try:
            (version,) = self._base.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                self._base.execute("DROP TABLE IF EXISTS seen")
                self._base.execute(f"PRAGMA user_version = {VERSION}")
            self._base.execute("PRAGMA journal_mode = WAL")
            self._base.execute("PRAGMA synchronous = OFF")
            self._base.execute(
                "CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, stamp TEXT, value TEXT) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError:
            self._base.close()
            raise

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.commit()
        self._base.close()

    def look_up(self, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        """(stamp, value) of those `keys` that are known."""
        wanted = list(keys)
        found: dict[str, tuple[str, str]] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            question = f"SELECT key, stamp, value FROM seen WHERE key IN ({marks})"
            found |= {key: (stamp, value) for key, stamp, value in self._base.execute(question, some)}
        return found

    def keep(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Remember (key, stamp, value) of each."""
        self._base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", entries)
        self._base.commit()

    def keep_root(self, root: Path | None) -> None:
        """Remember the folder that the rows' names are relative to."""
        self.keep([(_ROOT, "", str(root))] if root else [])


def recorded_root(jsonl: Path) -> Path | None:
    """The folder that names in `jsonl` are relative to, where its build left that beside it."""
    path = jsonl.with_name(f"{jsonl.name}{SUFFIX}")
    if not path.is_file():
        return None
    try:
        # Only read: the folder may be another's.
        base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        try:
            found = base.execute("SELECT value FROM seen WHERE key = ?", [_ROOT]).fetchone()
        finally:
            base.close()
    except sqlite3.Error:
        return None
    return Path(found[0]) if found else None
