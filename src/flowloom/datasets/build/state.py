"""What earlier builds read, so that a rerun reads only what changed: an SQLite file beside the output."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

VERSION = 1
SUFFIX = ".state"
_ROOT = "\0root"
"""Key of the folder that the rows' names are relative to; no path begins so."""
_RECIPE = "\0recipe"
"""Key of how the JSONL was built, as JSON."""
PATIENCE_S = 60.0
"""How long to wait for another build of the same output to write its chunk."""
_AT_ONCE = 500
"""Keys in one question; SQLite takes 999 on old systems."""


class State:
    """Values by key, each valid for one stamp of what it was read from; committed chunk by chunk.

    The file may be deleted at any time: everything is read again. Not for several threads.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False):
        self.path = path
        if is_read_only:
            self._base = sqlite3.connect(_read_only(path), uri=True)
            return
        try:
            self._open()
        except sqlite3.OperationalError:
            raise  # the folder is read only, the disk full: the file may be good
        except sqlite3.DatabaseError:
            # Damaged, or something else of that name: it holds nothing that cannot be read again.
            path.unlink()
            self._open()

    def _open(self) -> None:
        self._base = sqlite3.connect(self.path, timeout=PATIENCE_S)
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
        self.close()

    def close(self) -> None:
        """Let go of the file."""
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

    def keep_recipe(self, recipe: str) -> None:
        """Remember how the JSONL was built."""
        self.keep([(_RECIPE, "", recipe)])


def recorded_root(jsonl: Path) -> Path | None:
    """The folder that names in `jsonl` are relative to, where its build left that beside it."""
    found = _recorded(jsonl, _ROOT)
    return Path(found) if found else None


def recorded_recipe(jsonl: Path) -> str | None:
    """How `jsonl` was built, as `State.keep_recipe` was given it."""
    return _recorded(jsonl, _RECIPE)


def _recorded(jsonl: Path, key: str) -> str | None:
    path = jsonl.with_name(f"{jsonl.name}{SUFFIX}")
    if not path.is_file():
        return None
    try:
        base = sqlite3.connect(_read_only(path), uri=True)
        try:
            found = base.execute("SELECT value FROM seen WHERE key = ?", [key]).fetchone()
        finally:
            base.close()
    except sqlite3.Error:
        return None
    return found[0] if found else None


def _read_only(path: Path) -> str:
    """The address by which SQLite reads `path` and writes nothing beside it: the folder may be another's."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"
