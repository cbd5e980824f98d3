"""Stream 2,000 images of 200 kB from SeaweedFS: 3 times FLOW's speed; cached latents: 10 times.

The latents are what the images become once they are encoded, read by a machine that has none of them yet. The
figure is how many times over the tighter of both targets is kept; bytes are compared.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import cast

import numpy as np
import requests

from benchmarks.timing import Measured
from flowloom.data.cache.shard_stores import RemoteShards
from flowloom.data.cache.store import Cache
from flowloom.data.fetch.fetcher import Fetcher
from flowloom.storage.base import StorageSection
from flowloom.storage.objects import Objects
from flowloom.storage.open import open_source
from tests.fakes.seaweed import running_seaweed

TARGET = 1.0
TIMES_FLOW, TIMES_FROM_CACHE = 3.0, 10.0
NUM_IMAGES, IMAGE_BYTES = 2000, 200_000
BATCH = 16
AHEAD = 8
"""Batches that our loader reads ahead."""
READ_AHEAD_MIB = 64
CONNECTIONS = 16
REPEATS = 5
LATENTS = (16, 64, 64)
"""Of 512 x 512 pixels, in bfloat16: 131 kB."""
SHARD_BYTES = 64 * 2**20
THREADS = 2


def flows_pattern(urls: list[str]) -> Iterator[bytes]:
    """A thread an image, a pool a batch, a connection a request."""
    for start in range(0, len(urls), BATCH):
        with ThreadPoolExecutor(BATCH) as pool:
            yield from pool.map(
                lambda url: requests.get(url, timeout=60).content, urls[start : start + BATCH]
            )


def ours(names: list[str], fetcher: Fetcher) -> Iterator[bytes]:
    """Futures of the next batches, taken in order."""
    waiting = deque(fetcher.fetch(name, True, "") for name in names[: AHEAD * BATCH])
    for i in range(len(names)):
        content = waiting.popleft().result()
        if i + AHEAD * BATCH < len(names):
            waiting.append(fetcher.fetch(names[i + AHEAD * BATCH], True, ""))
        assert isinstance(content, bytes)
        yield content


def latents(source: Objects, spool: Path, keys: list[bytes]) -> Iterator[memoryview]:
    """The reads of a run whose cache is in the store, in place of images; `spool` is a local folder.

    Threads ask ahead, as the loader's do; records come one by one until the copy of their shard is here.
    """
    cache = Cache(RemoteShards(source, spool, "s3://loom", 2**40))
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[bool]] = deque()
        for i, key in enumerate(keys):
            while len(waiting) < AHEAD * BATCH and i + len(waiting) < len(keys):
                ahead = keys[i + len(waiting)]
                waiting.append(pool.submit(cache.has, ahead, ahead))
            assert waiting.popleft().result()
            found = cache.get(key, key)
            assert found
            yield found.payload.data


def make_new(spool: Path) -> None:
    """Let go of copies and of maps of them: the machine is new to the cache.

    Just before reading: a virtual machine hands freed memory back to its host within seconds, and has
    it again at a price that is not the store's.
    """
    gc.collect()
    shutil.rmtree(spool, ignore_errors=True)


def digest(contents: Iterator[bytes | memoryview]) -> str:
    """Of all contents in their order."""
    whole = hashlib.blake2b()
    for content in contents:
        whole.update(content)
    return whole.hexdigest()


def seconds(read: Callable[[], Iterator[bytes | memoryview]]) -> float:
    """By the clock: what counts is waiting, and the store works on the same cores for all."""
    start = time.perf_counter()
    deque(read(), maxlen=0)
    return time.perf_counter() - start


def fill(source: Objects, num_images: int) -> tuple[list[str], str]:
    """Names of the images written, and what their contents amount to."""
    draw = np.random.default_rng(0)
    names, whole = [f"images/{i:05}.jpg" for i in range(num_images)], hashlib.blake2b()
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, num_images, 64):
            part = names[start : start + 64]
            contents = [draw.bytes(IMAGE_BYTES) for _ in part]
            for content in contents:
                whole.update(content)
            list(pool.map(source.write, part, contents))
    return names, whole.hexdigest()


def fill_cache(source: Objects, spool: Path, num_records: int) -> tuple[list[bytes], str]:
    """Keys of the latents written, in the order of an epoch, and what they amount to."""
    draw = np.random.default_rng(1)
    cache = Cache(RemoteShards(source, spool, "s3://loom"), shard_bytes=SHARD_BYTES)
    contents = {}
    for i in range(num_records):
        key = i.to_bytes(4, "big") + draw.bytes(12)
        contents[key] = draw.integers(0, 2**16, LATENTS, np.uint16)
        cache.put("image-latents", key, key, contents[key], "bfloat16")
    cache.seal()
    keys = [list(contents)[i] for i in draw.permutation(num_records)]
    return keys, digest(contents[key].tobytes() for key in keys)


def run(num_images: int = NUM_IMAGES, repeats: int = REPEATS) -> Measured:
    """Ratios of samples a second; correct when all are the written bytes in the written order, and memory
    stayed within its bound."""
    with tempfile.TemporaryDirectory() as place, running_seaweed(Path(place)) as seaweed:
        os.environ.update(seaweed.environ)
        # Few connections: this store is nearer than a millisecond.
        storage = StorageSection(
            endpoint=seaweed.endpoint, read_ahead_mib=READ_AHEAD_MIB, connections=CONNECTIONS
        )
        source, store, spool = open_at("s3://loom", storage), open_at("s3://loom/cache", storage), Path(place)
        names, written = fill(source, num_images)
        keys, cached = fill_cache(store, spool / "writer", num_images)
        with closing(Fetcher(storage)) as fetcher:
            ways = {
                "ours": lambda: ours([f"s3://loom/{name}" for name in names], fetcher),
                "flow": lambda: flows_pattern(presigned(source, names)),
                "latents": lambda: latents(store, spool / "reader", keys),
            }
            is_same = digest(ways["ours"]()) == digest(ways["flow"]()) == written
            is_same &= digest(ways["latents"]()) == cached
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(repeats):
                for way, read in ways.items():
                    if way == "latents":
                        make_new(spool / "reader")
                    times[way].append(seconds(read))
            peak = fetcher.ahead.peak
    rates = {way: num_images / statistics.median(kept) for way, kept in times.items()}
    return Measured(
        ratio=min(
            rates["ours"] / rates["flow"] / TIMES_FLOW,
            rates["latents"] / rates["flow"] / TIMES_FROM_CACHE,
        ),
        target=TARGET,
        correct=is_same and peak <= READ_AHEAD_MIB * 2**20 + IMAGE_BYTES,
        detail={
            "images_over_flow": rates["ours"] / rates["flow"],
            "latents_over_flow": rates["latents"] / rates["flow"],
            "our_images_per_s": rates["ours"],
            "flow_images_per_s": rates["flow"],
            "latents_per_s": rates["latents"],
            "read_ahead_peak_mib": peak / 2**20,
            "images": num_images,
        },
    )


def open_at(url: str, storage: StorageSection) -> Objects:
    """The store at `url`."""
    source = open_source(url, storage)
    assert isinstance(source, Objects)
    return source


def presigned(source: Objects, names: list[str]) -> list[str]:
    """Addresses for a client that has no keys."""
    from obstore import sign
    from obstore.store import S3Store

    return list(sign(cast(S3Store, source.store), "GET", names, timedelta(hours=1)))
