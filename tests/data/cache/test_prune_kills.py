"""Pruning that is killed loses nothing that is kept, wherever the kill falls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from flowloom.data.cache.keys import digest
from flowloom.data.cache.shard_stores import LocalShards
from flowloom.data.cache.store import Cache

RECORDS = 60
PRUNER = """
import os, shutil, signal, sys
from pathlib import Path
from flowloom.data.cache.store import Cache
from flowloom.data.cache.keys import digest
from flowloom.data.cache.shard_stores import LocalShards

FILES = {"open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.link", "mmap.__new__"}
kept = {digest("key", i) for i in range(0, int(sys.argv[2]), 2)}

def prune(folder, operations):
    def count(event, args):
        nonlocal operations
        if event in FILES:
            operations -= 1
            if operations < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    cache = Cache(LocalShards(folder), shard_bytes=4000)
    sys.addaudithook(count)
    cache.prune(kept.__contains__)
    os._exit(0)

for operations in range(100_000):
    folder = Path(f"{sys.argv[1]}-{operations}")
    shutil.copytree(sys.argv[1], folder)
    child = os.fork()
    if not child:
        prune(folder, operations)
    status = os.waitpid(child, 0)[1]
    print(folder, flush=True)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
"""


def number(i: int) -> np.ndarray:
    return np.full(100 + i, i, np.float32)


def holds(cache: Cache, i: int) -> bool:
    found = cache.get(digest("key", i), digest("sample", i))
    return found is not None and found.payload.view(np.float32).tolist() == number(i).tolist()


def test_a_kill_at_any_file_operation_of_prune_loses_nothing_that_is_kept(tmp_path: Path) -> None:
    """Killed at its first operation on files, its second, and so on until one is left to end; then again."""
    whole = Cache(LocalShards(tmp_path / "cache"), shard_bytes=4000)
    for i in range(RECORDS):
        assert whole.put("numbers", digest("key", i), digest("sample", i), number(i), "float32")
    whole.seal()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PRUNER, str(tmp_path / "cache"), str(RECORDS)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    folders = [Path(line) for line in ended.stdout.splitlines()]
    assert len(folders) > 20, "kills, one for each operation"
    kept = range(0, RECORDS, 2)
    left_twice = 0
    for folder in folders:
        cache = Cache(LocalShards(folder))
        assert [i for i in kept if not holds(cache, i)] == [], folder.name
        assert list(cache.verify()) == [], folder.name
        left_twice += cache.stats().twice
        keys = {digest("key", i) for i in kept}
        assert cache.prune(keys.__contains__)[1] == len(kept), folder.name
        assert all(holds(cache, i) == (i in kept) for i in range(RECORDS)), folder.name
        assert cache.stats().twice == 0
        assert not list(folder.glob("*.open")), folder.name
        shutil.rmtree(folder)
    assert left_twice > 0, "a kill between writing and deleting, which is where it matters"
