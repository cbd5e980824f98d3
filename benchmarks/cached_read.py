"""Read 5,000 cached samples, shuffled, in batches of 8, warm: time of one .pt file each over ours.

A sample is 16 x 64 x 64 latents and 64 x 4096 states in bfloat16. Ours are records of shards, each checked
the first time that a process reads it (`first_pass_ratio` has that in it); every pass looks keys up, compares
sample ids and stacks batches. `cold_ratio` (target 5) is with the page cache emptied before each pass, where
this process may do so.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Measured, interleaved
from flowloom.data.cache.keys import digest
from flowloom.data.cache.records import caption_states, image_latents
from flowloom.data.cache.records.base import to_tensor
from flowloom.data.cache.shard_stores import LocalShards
from flowloom.data.cache.store import Cache

TARGET, COLD_TARGET = 3.5, 5.0
NUM_SAMPLES = int(os.environ.get("CACHED_READ_SAMPLES", "5000"))
BATCH = 8
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
KINDS = (image_latents.KIND, caption_states.KIND)


def made(i: int) -> tuple[Tensor, Tensor]:
    """The sample number `i`."""
    draw = torch.Generator().manual_seed(i)
    shapes = ((16, 64, 64), (64, 4096))
    latents, states = (torch.randn(shape, generator=draw).to(torch.bfloat16) for shape in shapes)
    return latents, states


def names(i: int) -> list[tuple[bytes, bytes]]:
    """Key and sample of its two records."""
    return [(digest(kind.name, i), digest("sample", i)) for kind in KINDS]


def write(folder: Path) -> None:
    """All samples, both ways."""
    cache = Cache(LocalShards(folder / "shards"))
    (folder / "files").mkdir()
    for i in range(NUM_SAMPLES):
        sample = made(i)
        torch.save(sample, folder / "files" / f"{i}.pt")
        for kind, (key, source), tensor in zip(KINDS, names(i), sample, strict=True):
            array, dtype = kind.to_array(tensor)
            cache.put(kind.name, key, source, array, dtype)
    cache.seal()


def batches(seed: int) -> Iterator[list[int]]:
    """An epoch's order."""
    order = np.random.default_rng(seed).permutation(NUM_SAMPLES).tolist()
    for start in range(0, NUM_SAMPLES, BATCH):
        yield order[start : start + BATCH]


def read_files(folder: Path, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """One .pt a sample, mapped."""
    for rows in batches(seed):
        samples = [torch.load(folder / "files" / f"{i}.pt", mmap=True, weights_only=True) for i in rows]
        yield torch.stack([sample[0] for sample in samples]), torch.stack([sample[1] for sample in samples])


def read_cache(cache: Cache, keys: list[list[tuple[bytes, bytes]]], seed: int = 0) -> Iterator[list[Tensor]]:
    """Records of the cache; keys are known, as they are in a run after the loader's threads asked."""
    for rows in batches(seed):
        yield [torch.stack([tensor(cache, *keys[i][part]) for i in rows]) for part in (0, 1)]


def tensor(cache: Cache, key: bytes, source: bytes) -> Tensor:
    """One record."""
    found = cache.get(key, source)
    assert found is not None
    return to_tensor(found.payload, found.dtype, found.shape)


def is_same(folder: Path, keys: list[list[tuple[bytes, bytes]]]) -> bool:
    """True if both return all samples, equal to the last bit."""
    cache = Cache(LocalShards(folder / "shards"))
    pairs = zip(read_files(folder), read_cache(cache, keys), strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


def drain(batches_: Iterator[object]) -> None:
    """Read everything and keep nothing."""
    for _ in batches_:
        pass


def cold_seconds(read: Callable[[], None]) -> float | None:
    """Wall time with an empty page cache; None where it cannot be emptied."""
    try:
        os.sync()
        DROP_CACHES.write_text("3")
    except OSError:
        return None
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def run() -> Measured:
    """Ratio of times of a warm epoch; correct when all tensors are equal to the last bit."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("CACHED_READ_DIR")) as place:
        folder = Path(place)
        write(folder)
        keys = [names(i) for i in range(NUM_SAMPLES)]
        same = is_same(folder, keys)
        cache = Cache(LocalShards(folder / "shards"))
        ours, theirs, first = interleaved(
            lambda: drain(read_cache(cache, keys)),
            lambda: drain(read_files(folder)),
            lambda: drain(read_cache(Cache(LocalShards(folder / "shards")), keys)),
            repeats=3,
            warm_up=1,
        )
        colds = [cold(folder, keys) for _ in range(3)]
    detail = {
        "our_samples_per_s": NUM_SAMPLES / ours,
        "pt_samples_per_s": NUM_SAMPLES / theirs,
        "first_pass_ratio": theirs / first,
    }
    measured = [ratio for ratio in colds if ratio is not None]
    if measured:
        detail |= {"cold_ratio": statistics.median(measured), "cold_target": COLD_TARGET}
    return Measured(ratio=theirs / ours, target=TARGET, correct=same, detail=detail)


def cold(folder: Path, keys: list[list[tuple[bytes, bytes]]]) -> float | None:
    """Ratio of wall times with empty page caches."""
    theirs = cold_seconds(lambda: drain(read_files(folder)))
    ours = cold_seconds(lambda: drain(read_cache(Cache(LocalShards(folder / "shards")), keys)))
    return theirs / ours if ours and theirs else None
