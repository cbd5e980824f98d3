"""2,000 images of 200 kB from SeaweedFS on this machine: ours over FLOW's pattern, bytes compared."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import requests

from benchmarks.timing import Measured
from flowloom.data.fetch import Fetcher
from flowloom.parts.sources.base import StorageSection, open_source
from flowloom.parts.sources.objects import Objects
from tests.stand_ins.seaweed import running_seaweed

TARGET = 3.0
NUM_IMAGES, IMAGE_BYTES = 2000, 200_000
BATCH = 16
AHEAD = 8
"""Batches that our loader reads ahead."""
READ_AHEAD_MIB = 64
CONNECTIONS = 16
REPEATS = 5
RECORD_BYTES = 16 * 64 * 64 * 2 + 32 * 4096 * 2
"""Latents of 512 x 512 pixels and 32 tokens of text, in bfloat16."""
NUM_RECORDS = 1000
PIECE_BYTES = 8 * 2**20
PIECES_AT_ONCE = 6


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


def shards(source: Objects, num_records: int) -> Iterator[bytes]:
    """A packed object of records in pieces, some of them under way at a time."""
    starts = range(0, num_records * RECORD_BYTES, PIECE_BYTES)
    with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        yield from pool.map(lambda start: source.read_range("shard", start, PIECE_BYTES), starts)


def digest(contents: Iterator[bytes]) -> str:
    """Of all contents in their order."""
    whole = hashlib.blake2b()
    for content in contents:
        whole.update(content)
    return whole.hexdigest()


def seconds(read: Callable[[], Iterator[bytes]]) -> float:
    """By the clock: what counts is waiting, and the store works on the same cores for all."""
    start = time.perf_counter()
    deque(read(), maxlen=0)
    return time.perf_counter() - start


def fill(source: Objects, num_images: int, num_records: int) -> tuple[list[str], str]:
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
    source.write("shard", draw.bytes(num_records * RECORD_BYTES))
    return names, whole.hexdigest()


def run(num_images: int = NUM_IMAGES, num_records: int = NUM_RECORDS, repeats: int = REPEATS) -> Measured:
    """Ratio of images a second; correct when ours and FLOW's are the written bytes in the written order, and
    memory stayed within its bound."""
    with tempfile.TemporaryDirectory() as folder, running_seaweed(Path(folder)) as seaweed:
        os.environ.update(seaweed.environ)
        # Few connections: this store is nearer than a millisecond.
        storage = StorageSection(
            endpoint=seaweed.endpoint, read_ahead_mib=READ_AHEAD_MIB, connections=CONNECTIONS
        )
        source = open_source("s3://loom", storage)
        assert isinstance(source, Objects)
        names, written = fill(source, num_images, num_records)
        with closing(Fetcher(storage)) as fetcher:
            ways = {
                "ours": lambda: ours([f"s3://loom/{name}" for name in names], fetcher),
                "flow": lambda: flows_pattern(presigned(source, names)),
                "shards": lambda: shards(source, num_records),
            }
            is_same = digest(ways["ours"]()) == digest(ways["flow"]()) == written
            times: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(repeats):
                for way, read in ways.items():
                    times[way].append(seconds(read))
            peak = fetcher.ahead.peak
    rates = {way: num_images / statistics.median(kept) for way, kept in times.items()}
    rates["shards"] *= num_records / num_images
    return Measured(
        ratio=rates["ours"] / rates["flow"],
        target=TARGET,
        correct=is_same and peak <= READ_AHEAD_MIB * 2**20 + IMAGE_BYTES,
        detail={
            "our_images_per_s": rates["ours"],
            "flow_images_per_s": rates["flow"],
            "shard_samples_per_s": rates["shards"],
            "shards_over_flow": rates["shards"] / rates["flow"],
            "read_ahead_peak_mib": peak / 2**20,
            "images": num_images,
        },
    )


def presigned(source: Objects, names: list[str]) -> list[str]:
    """Addresses for a client that has no keys."""
    from obstore import sign

    return sign(source.store, "GET", names, timedelta(hours=1))
