"""Buckets, order and captions: pure functions."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowloom.data.buckets import LEFT_OUT, assign, make_buckets
from flowloom.data.captions import CaptionRules, vary
from flowloom.data.metadata import Row
from flowloom.data.order import plan_epoch, rank_rows


def test_buckets_are_flows() -> None:
    assert make_buckets(256, 64, 2.0) == [(384, 128), (320, 192), (256, 256), (192, 320), (128, 384)]
    half = [(704, 320), (640, 384), (576, 448), (512, 512)]
    assert make_buckets(512, 64, 2.0) == half + [(h, w) for w, h in reversed(half[:-1])]
    half = [(1408, 704), (1280, 768), (1216, 832), (1152, 896), (1088, 960), (1024, 1024)]
    assert make_buckets(1024, 64, 2.0) == half + [(h, w) for w, h in reversed(half[:-1])]


def nearest(width: int, height: int, buckets: list[tuple[int, int]], cutoff: float) -> int:
    """FLOW's rule, one image at a time."""
    if not cutoff > width / height > 1 / cutoff:
        return LEFT_OUT
    scale = math.sqrt(1 / (width * height))
    distances = []
    for w, h in buckets:
        unit = math.sqrt(1 / (w * h))
        distances.append(math.hypot(w * unit - width * scale, h * unit - height * scale))
    return distances.index(min(distances))


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 9000)), min_size=1, max_size=50),
    base=st.sampled_from([64, 256, 512, 1024]),
    cutoff=st.sampled_from([1.5, 2.0, 3.0]),
)
def test_every_size_gets_the_bucket_that_flow_gives_it(
    sizes: list[tuple[int, int]], base: int, cutoff: float
) -> None:
    buckets = make_buckets(base, 64 if base > 64 else 16, cutoff)
    widths, heights = (np.array(column) for column in zip(*sizes, strict=True))
    expected = [nearest(w, h, buckets, cutoff) for w, h in sizes]
    assert assign(widths, heights, buckets, cutoff).tolist() == expected


def test_the_cutoff_is_strict() -> None:
    buckets = make_buckets(512, 64, 2.0)
    widths, heights = np.array([1000, 1000, 999, 500]), np.array([500, 501, 500, 1000])
    assert (assign(widths, heights, buckets, 2.0) == LEFT_OUT).tolist() == [True, False, False, True]


@settings(max_examples=100, deadline=None)
@given(
    row_buckets=st.lists(st.integers(-1, 4), max_size=80),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    world_size=st.integers(1, 5),
)
def test_every_row_comes_once_an_epoch(
    row_buckets: list[int], batch_size: int, seed: int, world_size: int
) -> None:
    column = np.array(row_buckets, dtype=np.int64)
    for epoch in range(2):
        plan = plan_epoch(column, batch_size, seed, epoch)
        batches = [plan[i] for i in range(len(plan))]
        rows = [int(row) for batch in batches for row in batch.rows]
        assert sorted(rows) == [i for i, bucket in enumerate(row_buckets) if bucket >= 0]
        for batch in batches:
            assert 1 <= len(batch.rows) <= batch_size
            assert {row_buckets[row] for row in batch.rows} == {batch.bucket}
            slices = [rank_rows(batch, rank, world_size).tolist() for rank in range(world_size)]
            assert [row for part in slices for row in part] == batch.rows.tolist()
        counts = Counter(bucket for bucket in row_buckets if bucket >= 0)
        assert len(plan) == sum(-(-count // batch_size) for count in counts.values())


def test_each_epoch_has_an_order_of_its_own_and_always_the_same() -> None:
    column = np.zeros(100, dtype=np.int64)
    first, second = (plan_epoch(column, 4, 7, epoch).rows.tolist() for epoch in (0, 1))
    assert first != second
    assert first == plan_epoch(column, 4, 7, 0).rows.tolist()
    assert first != plan_epoch(column, 4, 8, 0).rows.tolist()


def row(index: int, caption: str, tags: bool) -> Row:
    return Row(index, index + 1, "a.png", caption, 64, 64, tags, False, 1.0)


def test_prose_is_never_shuffled_and_captions_come_back_next_epoch() -> None:
    rules = CaptionRules(uncond=0.5, shuffle_tags=True, tag_drop=0.9, lowercase=0.0)
    seen = Counter(vary(row(3, "One, two, three", False), epoch, rules, 0) for epoch in range(400))
    assert set(seen) == {"", "One, two, three"}
    assert 150 < seen[""] < 250


def test_tags_are_shuffled_and_dropped_at_the_stated_rate() -> None:
    rules = CaptionRules(uncond=0.0, shuffle_tags=True, tag_drop=0.5, lowercase=0.0)
    counts = Counter()
    orders = set()
    for epoch in range(2000):
        tags = vary(row(1, "a,b , c,d", True), epoch, rules, 0).split(", ")
        assert len(set(tags)) == len(tags)
        assert set(tags) <= set("abcd")
        counts[len(tags)] += 1
        orders.add(tuple(tags))
    # ceil(4 u) with u uniform in [0.5, 1]: 3 and 4 equally often.
    assert set(counts) <= {2, 3, 4}
    assert counts[3] == pytest.approx(1000, abs=100)
    assert len(orders) == 48


def test_without_shuffling_tags_are_not_dropped_either() -> None:
    rules = CaptionRules(uncond=0.0, shuffle_tags=False, tag_drop=0.9, lowercase=0.0)
    assert {vary(row(0, "b, a", True), epoch, rules, 0) for epoch in range(50)} == {"b, a"}


def test_a_quarter_is_lower_cased() -> None:
    rules = CaptionRules(uncond=0.0, shuffle_tags=False, tag_drop=0.0, lowercase=0.25)
    lowered = sum(vary(row(i, "Ab", False), 0, rules, 0) == "ab" for i in range(2000))
    assert 420 < lowered < 580
