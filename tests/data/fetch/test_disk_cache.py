"""The cache on disk keeps its limit with several writers, and survives a kill at any moment."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowloom.data.fetch.disk_cache import DiskCache
from flowloom.errors import SourceError

MIB = 2**20


def content(i: int) -> bytes:
    return random.Random(i).randbytes(1000 + i)


def put(cache: DiskCache, i: int) -> None:
    cache.add(f"s3://b/{i}", f"etag {i}", content(i))


def get(cache: DiskCache, i: int) -> bytes | None:
    kept = cache.find(f"s3://b/{i}")
    return cache.read(f"s3://b/{i}", kept) if kept else None


def bytes_on_disk(folder: Path) -> int:
    """All contents, while no process changes anything."""
    index = sqlite3.connect(folder / "index.sqlite", timeout=60, isolation_level=None)
    index.execute("BEGIN IMMEDIATE")
    try:
        return sum(path.stat().st_size for path in folder.glob("??/*"))
    finally:
        index.execute("ROLLBACK")
        index.close()


def test_kept_content_is_returned_also_after_a_restart(tmp_path: Path) -> None:
    for _ in range(2):
        cache = DiskCache(tmp_path, MIB)
        for i in range(20):
            assert get(cache, i) in (None, content(i))
            put(cache, i)
            assert get(cache, i) == content(i)
        cache.close()
    assert get(DiskCache(tmp_path, MIB), 7) == content(7)


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 10_500)
    for i in range(10):
        put(cache, i)
    assert get(cache, 0) == content(0)
    for i in range(10, 15):
        put(cache, i)
    assert [i for i in range(15) if get(cache, i)] == [0, 6, 7, 8, 9, 10, 11, 12, 13, 14]
    assert bytes_on_disk(tmp_path) == cache.total_bytes <= 10_500


def test_a_new_content_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, MIB)
    cache.add("a", "1", b"old")
    cache.add("a", "2", b"newer")
    kept = cache.find("a")
    assert kept is not None
    assert (kept.etag, cache.read("a", kept)) == ("2", b"newer")
    assert bytes_on_disk(tmp_path) == cache.total_bytes == 5


def test_content_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    cache.add("small", "1", b"x" * 100)
    cache.add("large", "1", b"x" * 101)
    assert cache.find("large") is None
    assert cache.find("small") is not None


def test_a_damaged_file_is_a_miss(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, MIB)
    put(cache, 1)
    kept = cache.find("s3://b/1")
    assert kept is not None
    kept.path.write_bytes(b"")
    assert get(cache, 1) is None
    kept.path.unlink()
    assert get(cache, 1) is None


def test_threads_share_the_cache_and_its_size_holds(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 20_000)

    def use(i: int) -> None:
        put(cache, i % 50)
        assert get(cache, i % 50) in (None, content(i % 50))
        assert bytes_on_disk(tmp_path) <= 20_000

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(300)))
    assert cache.fault is None


WRITER = """
import sys, itertools
from pathlib import Path
from flowloom.data.fetch.disk_cache import DiskCache
from tests.data.fetch.test_disk_cache import put, get, content
cache = DiskCache(Path(sys.argv[1]), 30_000)
for i in itertools.count(int(sys.argv[2])):
    put(cache, i % 60)
    assert get(cache, i % 60) in (None, content(i % 60))
    assert cache.fault is None
    print(i, flush=True)
"""


@pytest.mark.slow
def test_processes_share_the_cache_and_kills_do_no_harm(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITER, str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for turn in range(3):
        writers = [
            subprocess.Popen([*arguments, str(start)], stdout=subprocess.PIPE, env=environ)
            for start in (0, 30)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                assert writer.stdout.readline(), "it ended by itself"
            end = time.monotonic() + 0.1 + 0.05 * turn
            while time.monotonic() < end:
                assert bytes_on_disk(tmp_path) <= 30_000
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
                writer.communicate()
                assert writer.returncode == -signal.SIGKILL
    cache = DiskCache(tmp_path, 30_000)
    found = [get(cache, i) for i in range(60)]
    assert all(each in (None, content(i)) for i, each in enumerate(found))
    assert sum(each is not None for each in found) > 10
    for i in range(200):
        put(cache, i)
    assert cache.total_bytes <= 30_000
    assert get(cache, 199) == content(199)


def test_half_written_files_of_dead_processes_are_deleted(tmp_path: Path) -> None:
    DiskCache(tmp_path, MIB).close()
    old, new = tmp_path / "partial" / "1-1", tmp_path / "partial" / "2-1"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    DiskCache(tmp_path, MIB)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_used_is_named_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"storage\.cache_dir"):
        DiskCache(tmp_path / "file", MIB)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(SourceError, match="empty this one"):
        DiskCache(tmp_path / "broken", MIB)


def test_a_fault_of_the_disk_disables_the_cache_not_the_run(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, MIB)
    put(cache, 1)
    (tmp_path / "partial").rmdir()
    put(cache, 2)
    assert cache.fault is not None
    assert "nothing more is added" in cache.fault
    assert get(cache, 1) == content(1)
    assert get(cache, 2) is None
