"""An index of the runs in SQLite, derived from the run directories.

A damaged, outdated or read-only file is replaced, if necessary in memory, and refilled from the directories.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowloom.server.runs.view import RunView

_VERSION = 2
_TABLES = f"""
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
PRAGMA user_version = {_VERSION};
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, trainer TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
    position REAL, signature TEXT NOT NULL, view TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS by_time ON runs (created DESC, id);
CREATE INDEX IF NOT EXISTS by_state ON runs (state);
"""
Row = tuple[str, ...]


class RunStore:
    """Views of runs by name."""

    def __init__(self, path: Path):
        self.path = path
        self.refill: Callable[[], None] = lambda: None
        """Called when the store is empty, to add all runs again."""
        self._lock = threading.RLock()
        self._connection = self._open()

    def put(self, view: RunView, signature: str) -> None:
        """Store a run's view and the `signature` of the files it was read from."""
        self._do(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                view.id,
                view.trainer,
                view.state,
                view.created,
                view.position,
                signature,
                view.model_dump_json(),
            ),
        )

    def forget(self, run_id: str) -> None:
        """Remove a deleted run."""
        self._do("DELETE FROM runs WHERE id = ?", (run_id,))

    def get(self, run_id: str) -> RunView | None:
        """The view of a run at its last refresh."""
        rows = self._do("SELECT view FROM runs WHERE id = ?", (run_id,))
        return RunView.model_validate_json(rows[0][0]) if rows else None

    def signatures(self) -> dict[str, tuple[str, str]]:
        """Signature and state of every run, by name."""
        return {
            name: (signature, state)
            for name, signature, state in self._do("SELECT id, signature, state FROM runs")
        }

    def page(
        self, states: Sequence[str], trainer: str | None, limit: int, skip: int
    ) -> tuple[int, list[RunView]]:
        """Number of runs in these states (default: all), and one page of them, newest first."""
        marks = ", ".join("?" * len(states))
        where = f"(? IS NULL OR trainer = ?){f' AND state IN ({marks})' if states else ''}"
        values = [trainer, trainer, *states]
        (total,) = self._do(f"SELECT count(*) FROM runs WHERE {where}", values)[0]
        order = "ORDER BY created DESC, id LIMIT ? OFFSET ?"
        rows = self._do(f"SELECT view FROM runs WHERE {where} {order}", [*values, limit, skip])
        return total, [RunView.model_validate_json(view) for (view,) in rows]

    def queue(self) -> list[RunView]:
        """The queued runs in order."""
        rows = self._do("SELECT view FROM runs WHERE state = 'queued' ORDER BY position, id")
        return [RunView.model_validate_json(view) for (view,) in rows]

    def with_states(self, *states: str) -> list[RunView]:
        """The runs in one of `states`."""
        marks = ", ".join("?" * len(states))
        rows = self._do(f"SELECT view FROM runs WHERE state IN ({marks})", states)
        return [RunView.model_validate_json(view) for (view,) in rows]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _do(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(statement, values).fetchall()
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError):
            raise  # the values are wrong, not the file
        except sqlite3.DatabaseError:
            self._recreate()
        # Without the lock: refilling takes other locks, whose holders may wait for this one.
        self.refill()
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def _open(self) -> sqlite3.Connection:
        try:
            connection = self._connect(str(self.path))
            (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if sound != "ok" or version not in (0, _VERSION):
                connection.close()
                raise sqlite3.DatabaseError(sound)
            connection.executescript(_TABLES)
        except sqlite3.DatabaseError:
            return self._fresh()
        return connection

    def _recreate(self) -> None:
        with self._lock:
            with suppress(sqlite3.DatabaseError):
                self._connection.close()
            self._connection = self._fresh()

    def _fresh(self) -> sqlite3.Connection:
        """An empty database in a new file or, if none can be written, in memory."""
        try:
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            connection = self._connect(str(self.path))
            connection.executescript(_TABLES)
        except (sqlite3.DatabaseError, OSError):
            connection = self._connect(":memory:")
            connection.executescript(_TABLES)
        return connection

    @staticmethod
    def _connect(name: str) -> sqlite3.Connection:
        return sqlite3.connect(name, timeout=5, isolation_level=None, check_same_thread=False)
