"""Assign 1,000,000 image sizes to buckets: time of FLOW's rule in plain Python over ours, equal results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.timing import Measured, interleaved
from flowloom.data.buckets import LEFT_OUT, assign, make_buckets

TARGET = 80.0
NUM_SIZES = 1_000_000
CUTOFF = 2.0


def flows_rule(sizes: Sequence[tuple[int, int]], buckets: Sequence[tuple[int, int]]) -> list[int]:
    """One image at a time: the nearest bucket in the plane of unit-area shapes, the first of equals."""
    points = [(math.sqrt(w / h), math.sqrt(h / w)) for w, h in buckets]
    found = []
    for width, height in sizes:
        if not CUTOFF > width / height > 1 / CUTOFF:
            found.append(LEFT_OUT)
            continue
        scale = math.sqrt(1 / (width * height))
        x, y = width * scale, height * scale
        distances = [math.sqrt((x - px) ** 2 + (y - py) ** 2) for px, py in points]
        found.append(distances.index(min(distances)))
    return found


def run() -> Measured:
    """Ratio of times over all sizes; correct when every answer is the same."""
    draw = np.random.default_rng(0)
    widths, heights = draw.integers(200, 5000, size=(2, NUM_SIZES))
    sizes = list(zip(widths.tolist(), heights.tolist(), strict=True))
    buckets = make_buckets(1024, 64, CUTOFF)
    expected = flows_rule(sizes, buckets)
    is_same = bool((assign(widths, heights, buckets, CUTOFF) == expected).all())
    ours, theirs = interleaved(
        lambda: assign(widths, heights, buckets, CUTOFF),
        lambda: flows_rule(sizes, buckets),
        repeats=5,
        warm_up=1,
    )
    return Measured(
        ratio=theirs / ours,
        target=TARGET,
        correct=is_same,
        detail={"our_s": ours, "plain_python_s": theirs, "sizes": NUM_SIZES, "buckets": len(buckets)},
    )
