"""Copies of remote shards: what is read is the same with them and without, and they stay within bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowloom.data.cache import mirror
from flowloom.data.cache.shard_stores import RemoteShards
from flowloom.data.cache.store import Cache
from flowloom.errors import SourceError
from tests.data.cache.test_shards import Bucket, key, numbers, put, sample

NUM_RECORDS = 40
EXPECTED = [[i] * (i % 50 + 1) * 2 for i in range(NUM_RECORDS)]


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_all(cache: Cache) -> list[list[float] | None]:
    return [numbers(cache, i) for i in range(NUM_RECORDS)]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A store with several shards, each of several pieces."""
    monkeypatch.setattr(mirror, "PIECE_BYTES", 1000)
    bucket = Bucket()
    cache = Cache(RemoteShards(bucket, tmp_path / "writer", "s3://x"), shard_bytes=3000)  # pyright: ignore[reportArgumentType]
    for i in range(NUM_RECORDS):
        put(cache, i)
    cache.seal()
    assert len(bucket.things) > 3
    return bucket


def opened(bucket: Bucket, spool: Path, limit: int = 2**30) -> tuple[Cache, RemoteShards]:
    store = RemoteShards(bucket, spool, "s3://x", limit)  # pyright: ignore[reportArgumentType]
    return Cache(store), store


def copies(spool: Path) -> set[str]:
    return {path.name for path in (spool / "mirror").glob("*.shard")}


def test_a_complete_mirror_requests_nothing_from_the_store(bucket: Bucket, tmp_path: Path) -> None:
    cache, _ = opened(bucket, tmp_path / "a")
    assert read_all(cache) == EXPECTED
    until(lambda: copies(tmp_path / "a") == bucket.things.keys())
    for again in (cache, opened(bucket, tmp_path / "a")[0]):
        before = bucket.reads
        assert read_all(again) == EXPECTED
        assert bucket.reads == before


def test_copies_stay_within_their_limit(bucket: Bucket, tmp_path: Path) -> None:
    limit = max(map(len, bucket.things.values())) * 2
    cache, store = opened(bucket, tmp_path / "a", limit)
    until(lambda: not any(thread.is_alive() for thread in store.mirror._threads))
    assert 0 < sum(len(bucket.things[name]) for name in copies(tmp_path / "a")) <= limit
    assert read_all(cache) == EXPECTED
    none, _ = opened(bucket, tmp_path / "b", 0)
    assert read_all(none) == EXPECTED
    assert not (tmp_path / "b" / "mirror").exists()


def test_a_damaged_copy_is_left_for_the_store(bucket: Bucket, tmp_path: Path) -> None:
    whole = bucket.read_range

    def torn(name: str, start: int, length: int) -> bytes:
        content = whole(name, start, length)
        return content[:200] + bytes(len(content) - 200) if length == 1000 and not start else content

    bucket.read_range = torn
    cache, store = opened(bucket, tmp_path / "a")
    until(lambda: not any(thread.is_alive() for thread in store.mirror._threads))
    assert all(cache.has(key(i), sample(i)) for i in range(0, NUM_RECORDS, 2))
    assert read_all(cache) == EXPECTED
    assert not cache.faults
    assert all(len(bucket.things[name]) < 1000 for name in copies(tmp_path / "a"))


def test_a_store_that_fails_leaves_reading_as_it_was(bucket: Bucket, tmp_path: Path) -> None:
    whole = bucket.read_range

    def failing(name: str, start: int, length: int) -> bytes:
        if threading.current_thread().name == "mirror":
            raise SourceError("the store is down")
        return whole(name, start, length)

    bucket.read_range = failing
    cache, store = opened(bucket, tmp_path / "a")
    until(lambda: not any(thread.is_alive() for thread in store.mirror._threads))
    assert read_all(cache) == EXPECTED
    assert not list((tmp_path / "a" / "mirror").glob("*.part"))


def test_one_process_downloads_and_an_incomplete_copy_begins_again(bucket: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "mirror"
    folder.mkdir(parents=True)
    (folder / "torn.shard.part").write_bytes(b"half")
    (folder / "gone.shard").write_bytes(b"of a shard that was pruned")
    _, first = opened(bucket, tmp_path / "a")
    _, second = opened(bucket, tmp_path / "a")
    assert not second.mirror._threads
    until(lambda: copies(tmp_path / "a") == bucket.things.keys())
    until(lambda: not any(thread.is_alive() for thread in first.mirror._threads))
    assert not list(folder.glob("*.part"))


def test_pruned_shards_are_deleted_from_the_mirror_too(bucket: Bucket, tmp_path: Path) -> None:
    cache, _ = opened(bucket, tmp_path / "a")
    until(lambda: copies(tmp_path / "a") == bucket.things.keys())
    cache.prune(lambda k: k == key(3))
    assert numbers(cache, 3) == EXPECTED[3]
    until(lambda: copies(tmp_path / "a") == bucket.things.keys())
    assert numbers(cache, 4) is None


def test_without_a_place_for_copies_the_store_is_read(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mirror").write_text("a file where the folder should be")
    cache, _ = opened(bucket, tmp_path / "a")
    assert read_all(cache) == EXPECTED
