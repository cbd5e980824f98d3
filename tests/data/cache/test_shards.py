"""Shards: what was appended is there after a kill, what was damaged is seen, what is keyed is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowloom.data.cache.keys import digest
from flowloom.data.cache.shard_stores import LocalShards, RemoteShards
from flowloom.data.cache.shards import HEADER, ShardWriter
from flowloom.data.cache.store import Cache

WRITER = """
import sys, numpy as np
from pathlib import Path
from flowloom.data.cache.store import Cache
from flowloom.data.cache.keys import digest
from flowloom.data.cache.shard_stores import LocalShards
cache = Cache(LocalShards(Path(sys.argv[1])), shard_bytes=200_000)
for i in range(int(sys.argv[2]), 10**9):
    array = np.full(300 + i % 700, i, np.float32)
    cache.put("numbers", digest("key", i), digest("sample", i), array, "float32")
    print(i, flush=True)
"""


def key(i: int) -> bytes:
    return digest("key", i)


def sample(i: int) -> bytes:
    return digest("sample", i)


def put(cache: Cache, i: int, kind: str = "numbers") -> bool:
    return cache.put(kind, key(i), sample(i), np.full((2, i % 50 + 1), i, np.float32), "float32")


def numbers(cache: Cache, i: int) -> list[float] | None:
    found = cache.get(key(i), sample(i))
    return None if found is None else found.payload.view(found.dtype).reshape(found.shape).ravel().tolist()


class Stored(NamedTuple):
    name: str
    size: int


class Bucket:
    """An object store in memory."""

    def __init__(self):
        self.things: dict[str, bytes] = {}
        self.reads = 0

    def read(self, name: str) -> bytes:
        return self.things[name]

    def read_range(self, name: str, start: int, length: int) -> bytes:
        self.reads += 1
        return self.things[name][start : start + length]

    def read_buffer(self, name: str, start: int, length: int) -> bytes:
        return self.read_range(name, start, length)

    def write(self, name: str, content: bytes | Path) -> None:
        self.things[name] = content if isinstance(content, bytes) else content.read_bytes()

    def list(self, prefix: str = "") -> Iterator[Stored]:
        for name, content in sorted(self.things.items()):
            if name.startswith(prefix):
                yield Stored(name, len(content))

    def delete(self, name: str) -> None:
        self.things.pop(name, None)


def test_a_record_is_found_before_and_after_sealing(tmp_path: Path):
    cache = Cache(LocalShards(tmp_path), shard_bytes=4000)
    for i in range(60):
        assert put(cache, i)
        assert numbers(cache, i) == [i] * (i % 50 + 1) * 2
    cache.seal()
    for found in (cache, Cache(LocalShards(tmp_path))):
        assert [numbers(found, i) for i in range(60)] == [[i] * (i % 50 + 1) * 2 for i in range(60)]
        assert all(found.has(key(i), sample(i)) for i in range(60))
        assert not found.has(key(60), sample(60))
    assert len(list(tmp_path.glob("*.shard"))) > 1
    assert not list(tmp_path.glob("*.open"))


def test_a_record_of_another_sample_is_not_given(tmp_path: Path):
    cache = Cache(LocalShards(tmp_path))
    put(cache, 1)
    cache.seal()
    assert cache.get(key(1), sample(2)) is None
    assert "another sample" in cache.faults[0]


@pytest.mark.parametrize("where", ["header", "payload"])
def test_damage_is_seen_before_it_is_read(tmp_path: Path, where: str):
    cache = Cache(LocalShards(tmp_path))
    for i in range(3):
        put(cache, i)
    cache.seal()
    (path,) = tmp_path.glob("*.shard")
    raw = bytearray(path.read_bytes())
    raw[20 if where == "header" else HEADER.size + 3] ^= 1
    path.write_bytes(raw)
    cache = Cache(LocalShards(tmp_path))
    assert len(list(cache.verify())) == 1
    assert not cache.has(key(0), sample(0))
    assert cache.get(key(0), sample(0)) is None
    assert numbers(cache, 2) == [2] * 6
    assert put(cache, 0), "it can be added again"
    cache.seal()
    assert cache.prune(lambda _key: True) == (1, 3)
    assert not list(cache.verify())
    assert numbers(cache, 0) == [0, 0]


@pytest.mark.parametrize("cut", [1, 40, 500])
def test_a_shard_cut_short_is_named_and_left_out(tmp_path: Path, cut: int):
    cache = Cache(LocalShards(tmp_path))
    for i in range(5):
        put(cache, i)
    cache.seal()
    (path,) = tmp_path.glob("*.shard")
    path.write_bytes(path.read_bytes()[:-cut])
    cache = Cache(LocalShards(tmp_path))
    assert path.name in cache.faults[0]
    assert numbers(cache, 1) is None
    put(cache, 1)
    cache.prune(lambda _key: True)
    assert numbers(cache, 1) == [1] * 4
    assert not path.exists()


@given(cut=st.integers(0, 3000), flip=st.integers(0, 3000))
@settings(max_examples=60, deadline=None)
def test_an_open_shard_truncated_anywhere_keeps_all_earlier_records(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
):
    folder = tmp_path_factory.mktemp("torn")
    writer = ShardWriter(folder)
    ends = [writer.append("n", key(i), sample(i), np.full(i * 20, i, np.uint8), "uint8") for i in range(12)]
    raw = bytearray(writer.path.read_bytes())
    os.close(writer._file)
    del raw[len(raw) - min(cut, len(raw)) :]
    if flip < len(raw):
        raw[flip] ^= 255
    writer.path.write_bytes(raw)
    cache = Cache(LocalShards(folder))
    touched = min(flip, len(raw))
    whole = [i for i, record in enumerate(ends) if record.offset + record.length <= touched]
    found = [i for i in range(12) if cache.get(key(i), sample(i))]
    assert found == list(range(len(found))), "none is left out in the middle"
    assert len(found) >= len(whole)
    assert all(cache.get(key(i), sample(i)).payload.tolist() == [i] * i * 20 for i in found)  # pyright: ignore[reportOptionalMemberAccess]


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path: Path):
    """kill -9 in the middle of writing and sealing, again and again, two writers at a time."""
    first, done = 0, set[int]()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for wait in (1, 30, 160, 161, 400):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(first)]
        writers = [
            subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout
            for line in writer.stdout:
                done.add(int(line))
                if int(line) >= first + wait:
                    break
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate()
            done |= {int(line) for line in rest.splitlines()[:-1]}
        first = max(done)
    cache = Cache(LocalShards(tmp_path))
    assert len(done) > 700
    for i in done:
        found = cache.get(key(i), sample(i))
        assert found is not None, i
        assert (found.payload.view(np.float32) == i).all()
        assert found.shape == (300 + i % 700,)
    assert not list(cache.verify())
    assert not list(tmp_path.glob("*.open"))


def test_an_open_shard_of_a_living_process_is_left_alone(tmp_path: Path):
    writing, other = Cache(LocalShards(tmp_path)), Cache(LocalShards(tmp_path))
    put(writing, 1)
    other.refresh()
    assert len(list(tmp_path.glob("*.open"))) == 1
    assert numbers(other, 1) is None
    writing.seal()
    other.refresh()
    assert numbers(other, 1) == [1] * 4


def test_a_limit_stops_writing_and_reading_continues(tmp_path: Path):
    cache = Cache(LocalShards(tmp_path), limit_bytes=2000)
    taken = [put(cache, i) for i in range(20)]
    assert taken[0]
    assert not taken[-1]
    assert "limit" in str(cache.full)
    assert numbers(cache, 0) == [0, 0]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2000 + 512


def test_pruning_keeps_used_records_and_merges_duplicates(tmp_path: Path):
    one, other = Cache(LocalShards(tmp_path)), Cache(LocalShards(tmp_path))
    for i in range(10):
        put(one, i, "latents")
        put(other, i + 5, "texts")
    one.seal()
    other.seal()
    kept = {key(i) for i in range(0, 15, 2)}
    cache = Cache(LocalShards(tmp_path))
    stats = cache.stats()
    assert (stats.shards, stats.twice) == (2, 5)
    assert {kind: count for kind, (count, _) in stats.kinds.items()} == {"latents": 10, "texts": 10}
    assert cache.prune(kept.__contains__) == (12, 8)
    assert [i for i in range(15) if numbers(cache, i)] == list(range(0, 15, 2))
    assert cache.stats().twice == 0


def test_an_object_store_holds_the_same(tmp_path: Path):
    bucket = Bucket()
    cache = Cache(RemoteShards(bucket, tmp_path / "a", "s3://x"), shard_bytes=3000)  # pyright: ignore[reportArgumentType]
    for i in range(40):
        put(cache, i)
    cache.seal()
    assert not list((tmp_path / "a").iterdir())
    cache = Cache(RemoteShards(bucket, tmp_path / "b", "s3://x"))  # pyright: ignore[reportArgumentType]
    assert cache.has(key(7), sample(7))
    before = bucket.reads
    assert numbers(cache, 7) == [7] * 16
    assert bucket.reads == before, "what was read ahead is not fetched again"
    assert [numbers(cache, i) for i in range(40)] == [[i] * (i % 50 + 1) * 2 for i in range(40)]
    assert not list(cache.verify())
    assert cache.prune(lambda k: k == key(3))[1] == 1
    assert numbers(cache, 3) == [3] * 8
    assert numbers(cache, 4) is None
    assert len(bucket.things) == 1


def test_a_sealed_shard_that_was_not_sent_is_sent_by_the_next_writer(tmp_path: Path):
    bucket = Bucket()
    writer = ShardWriter(tmp_path)
    writer.append("numbers", key(1), sample(1), np.full((2, 2), 1, np.float32), "float32")
    writer.seal()
    cache = Cache(RemoteShards(bucket, tmp_path, "s3://x"))  # pyright: ignore[reportArgumentType]
    assert numbers(cache, 1) == [1] * 4
    assert len(bucket.things) == 1
