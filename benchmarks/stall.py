"""The loader before a fake 30 ms step: at most 2% of the time is spent waiting for data."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.loader import make_loader, nothing
from benchmarks.photos import write_photos
from benchmarks.timing import Measured

TARGET = 0.02
STEP_S = 0.03
NUM_PHOTOS, BATCH_SIZE = 300, 1
EPOCHS = 2


def stalled(loader: Any) -> tuple[float, int]:
    """The share of the time spent in next(), and how many samples came, after the very first batch."""
    batches = loader.endless(0)
    seen = len(next(batches).samples)
    waited, begun = 0.0, time.perf_counter()
    while seen < EPOCHS * NUM_PHOTOS:
        time.sleep(STEP_S)
        start = time.perf_counter()
        seen += len(next(batches).samples)
        waited += time.perf_counter() - start
    share = waited / (time.perf_counter() - begun)
    batches.close()
    return share, seen


def run() -> Measured:
    """The largest share of waiting over the sources; correct when as many samples came as there are."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_photos(Path(folder), NUM_PHOTOS)
        loaders = {
            "disk": make_loader(path, batch_size=BATCH_SIZE),
            "cache": make_loader(path, batch_size=BATCH_SIZE, needs_pixels=nothing),
        }
        found = {name: stalled(loader) for name, loader in loaders.items()}
    return Measured(
        ratio=max(share for share, _ in found.values()),
        target=TARGET,
        correct=all(seen == EPOCHS * NUM_PHOTOS for _, seen in found.values()),
        higher_is_better=False,
        detail={name: share for name, (share, _) in found.items()} | {"step_s": STEP_S},
    )
