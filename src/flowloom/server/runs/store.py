"""The list of runs in SQLite: quick to read, and nothing that the run directories do not say as well.

A file that is damaged, of another version, or not writable is made anew, in memory if need be, and
filled from the directories.
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
        """Called when it is empty: puts all runs back."""
        self._lock = threading.RLock()
        self._connection = self._open()

    def put(self, view: RunView, signature: str) -> None:
        """Keep how a run stands, and by which `signature` of its files that was told."""
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
        """The run is no longer there."""
        self._do("DELETE FROM runs WHERE id = ?", (run_id,))

    def get(self, run_id: str) -> RunView | None:
        """How a run stood when it was last looked at."""
        rows = self._do("SELECT view FROM runs WHERE id = ?", (run_id,))
        return RunView.model_validate_json(rows[0][0]) if rows else None

    def signatures(self) -> dict[str, tuple[str, str]]:
        """Signature and state of all, by name."""
        return {
            name: (signature, state)
            for name, signature, state in self._do("SELECT id, signature, state FROM runs")
        }

    def page(
        self, states: Sequence[str], trainer: str | None, limit: int, skip: int
    ) -> tuple[int, list[RunView]]:
        """How many runs there are of these states (all where none are named), and some, newest first."""
        marks = ", ".join("?" * len(states))
        where = f"(? IS NULL OR trainer = ?){f' AND state IN ({marks})' if states else ''}"
        values = [trainer, trainer, *states]
        (total,) = self._do(f"SELECT count(*) FROM runs WHERE {where}", values)[0]
        order = "ORDER BY created DESC, id LIMIT ? OFFSET ?"
        rows = self._do(f"SELECT view FROM runs WHERE {where} {order}", [*values, limit, skip])
        return total, [RunView.model_validate_json(view) for (view,) in rows]

    def queue(self) -> list[RunView]:
        """The runs that wait, in their order."""
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
            self._remake()
        # Without the lock: filling it takes others, which may wait for this one.
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

    def _remake(self) -> None:
        with self._lock:
            with suppress(sqlite3.DatabaseError):
                self._connection.close()
            self._connection = self._fresh()

    def _fresh(self) -> sqlite3.Connection:
        """An empty one, in a new file or, where none can be written, in memory."""
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
