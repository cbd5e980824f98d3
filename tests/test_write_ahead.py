"""Processes that open a new SQLite file at the same moment all get the write-ahead log."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from flowloom.files import use_write_ahead_log


def test_a_locked_database_is_waited_for(tmp_path: Path):
    path = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(path)) as holder, closing(sqlite3.connect(path, timeout=0)) as waiting:
        holder.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            use_write_ahead_log(waiting, 0.1)
        assert time.monotonic() - start >= 0.1
        holder.execute("ROLLBACK")
        use_write_ahead_log(waiting, 0.1)
        assert waiting.execute("PRAGMA journal_mode").fetchone() == ("wal",)
