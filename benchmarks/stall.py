"""The loader in front of a fake 30 ms step, from disk, store and cache: at most 2% of the time waiting.

`cache_to_tensors` is the share of the time that it takes beside to make tensors of cached records, which the
engine does in its own thread before each step.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.cache_fill import config_of
from benchmarks.loader import make_loader
from benchmarks.photos import write_photos
from benchmarks.timing import Measured
from tests.fakes.seaweed import Seaweed, running_seaweed

TARGET = 0.02
STEP_S = 0.03
NUM_PHOTOS, NUM_CACHED = 300, 40
NUM_STEPS = 600
Use = Callable[[Any], Any]


def stalled(loader: Any, use: Use = lambda _batch: None) -> tuple[float, float, bool]:
    """Shares of the time in next() and in `use` after the first batch; whether all came as often as due."""
    batches = loader.endless(0)
    first = next(batches)
    use(first)
    seen = [sample.row for sample in first.samples]
    waited = used = 0.0
    begun = time.perf_counter()
    while len(seen) < NUM_STEPS:
        time.sleep(STEP_S)
        start = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        use(batch)
        waited, used = waited + came - start, used + time.perf_counter() - came
        seen += [sample.row for sample in batch.samples]
    seconds = time.perf_counter() - begun
    batches.close()
    rows = len(loader.dataset.metadata)
    is_whole = sorted(seen) == sorted(row for row in range(rows) for _ in range(NUM_STEPS // rows))
    return waited / seconds, used / seconds, is_whole


def from_disk(folder: Path) -> tuple[float, float, bool]:
    """JPEGs of 1600 x 1200 from a folder, to 512 pixels."""
    return stalled(make_loader(write_photos(folder, NUM_PHOTOS), batch_size=1))


def from_store(folder: Path, seaweed: Seaweed) -> tuple[float, float, bool]:
    """The same from a bucket on this machine."""
    from flowloom.data.fetch.image_source import ImageSource
    from flowloom.storage.base import StorageSection
    from flowloom.storage.open import open_source

    os.environ.update(seaweed.environ)
    storage = StorageSection(endpoint=seaweed.endpoint)
    store, path = open_source("s3://loom", storage), write_photos(folder, NUM_PHOTOS)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda photo: store.write(photo.name, photo), sorted(folder.glob("*.jpg"))))
    images = ImageSource(storage)
    try:
        return stalled(make_loader(path, "s3://loom", batch_size=1, images=images))
    finally:
        images.close()


def from_cache(folder: Path) -> tuple[float, float, bool]:
    """Latents and states of the demo's networks from shards on disk; neither network is opened."""
    import torch

    from flowloom.datasets.load import load_dataset
    from flowloom.engine.build import load_encoders
    from flowloom.engine.fill_cache import fill

    write_photos(folder, NUM_CACHED)
    config = config_of(folder)
    fill(config)
    dataset = load_dataset(config)
    encoders = load_encoders(config.model, config, torch.device("cpu"), dataset)
    loader = make_loader(folder / "data.jsonl", batch_size=1, latents=encoders.caches.latents)
    share, used, is_whole = stalled(loader, encoders.encode)
    return share, used, is_whole and encoders.open_now == (False, False)


def run() -> Measured:
    """The largest share of waiting over the sources; correct when every sample came as often as is due."""
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in ("disk", "store", "cache", "seaweed")}
        for folder in folders.values():
            folder.mkdir()
        found = {"disk": from_disk(folders["disk"]), "cache": from_cache(folders["cache"])}
        with running_seaweed(folders["seaweed"]) as seaweed:
            found["store"] = from_store(folders["store"], seaweed)
    shares = {name: share for name, (share, _, _) in found.items()}
    return Measured(
        ratio=max(shares.values()),
        target=TARGET,
        correct=all(is_whole for *_, is_whole in found.values()),
        higher_is_better=False,
        detail=shares | {"cache_to_tensors": found["cache"][1], "step_s": STEP_S},
    )
