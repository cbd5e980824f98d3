"""The build state: an SQLite file beside the output, so that a rerun reads only changed files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from flowloom.files import use_write_ahead_log

VERSION = 1
SUFFIX = ".state"
_ROOT = "\0root"
"""Key of the folder that file names are relative to; no path begins like this."""
_RECIPE = "\0recipe"
"""Key of the JSONL's recipe, as JSON."""
TIMEOUT_S = 60.0
"""Maximum wait for another build of the same output to write its chunk."""
_KEYS_PER_QUERY = 500
"""Keys in one query; old versions of SQLite allow 999."""


class BuildState:
    """Values by key, each valid for one stamp of its file; committed chunk by chunk.

    The file may be deleted at any time: then everything is read again. Not thread-safe.
    """

    def __init__(self, path: Path, *, is_read_only: bool = False):
        self.path = path
        if is_read_only:
            self._database = sqlite3.connect(_read_only(path), uri=True)
            return
        try:
            self._open()
        except sqlite3.OperationalError:
            raise  # a read-only folder or a full disk: the file may be intact
        except sqlite3.DatabaseError:
            # Damaged, or another file of this name; all of the state can be read again.
            path.unlink()
            self._open()

    def _open(self) -> None:
        self._database = sqlite3.connect(self.path, timeout=TIMEOUT_S)
        try:
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                self._database.execute("DROP TABLE IF EXISTS seen")
                self._database.execute(f"PRAGMA user_version = {VERSION}")
            use_write_ahead_log(self._database, TIMEOUT_S)
            self._database.execute("PRAGMA synchronous = OFF")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS seen (key TEXT PRIMARY KEY, stamp TEXT, value TEXT) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError:
            self._database.close()
            raise

    def __enter__(self) -> BuildState:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.commit()
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def get_all(self, keys: Iterable[str]) -> dict[str, tuple[str, str]]:
        """(stamp, value) of the `keys` that are stored."""
        keys = list(keys)
        entries: dict[str, tuple[str, str]] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            part = keys[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(part))
            query = f"SELECT key, stamp, value FROM seen WHERE key IN ({marks})"
            entries |= {key: (stamp, value) for key, stamp, value in self._database.execute(query, part)}
        return entries

    def put(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """Store `entries`, each (key, stamp, value)."""
        self._database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", entries)
        self._database.commit()

    def put_root(self, root: Path | None) -> None:
        """Store the folder that file names are relative to."""
        self.put([(_ROOT, "", str(root))] if root else [])

    def put_recipe(self, recipe: str) -> None:
        """Store the recipe of the JSONL."""
        self.put([(_RECIPE, "", recipe)])


def recorded_root(jsonl: Path) -> Path | None:
    """The folder that names in `jsonl` are relative to, if its build recorded one."""
    root = _recorded(jsonl, _ROOT)
    return Path(root) if root else None


def recorded_recipe(jsonl: Path) -> str | None:
    """The recipe of `jsonl`, as `BuildState.put_recipe` stored it."""
    return _recorded(jsonl, _RECIPE)


def _recorded(jsonl: Path, key: str) -> str | None:
    path = jsonl.with_name(f"{jsonl.name}{SUFFIX}")
    if not path.is_file():
        return None
    try:
        with closing(sqlite3.connect(_read_only(path), uri=True)) as database:
            row = database.execute("SELECT value FROM seen WHERE key = ?", [key]).fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row else None


def _read_only(path: Path) -> str:
    """The URI that opens `path` without writing beside it: the folder may belong to another user."""
    return f"{path.absolute().as_uri()}?mode=ro&immutable=1"
