"""Buckets, order and captions: pure functions."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowloom.data.buckets import LEFT_OUT, assign, make_buckets
from flowloom.data.captions import CaptionRules, vary
from flowloom.data.metadata import Row
from flowloom.data.order import BatchingOptions, plan_epoch, rank_parts


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
            slices = [rank_parts(batch, rank, world_size)[0].rows.tolist() for rank in range(world_size)]
            assert [row for part in slices for row in part] == batch.rows.tolist()
        counts = Counter(bucket for bucket in row_buckets if bucket >= 0)
        assert len(plan) == sum(-(-count // batch_size) for count in counts.values())


@given(
    num_rows=st.integers(1, 40),
    num_updates=st.integers(1, 40),
    world_size=st.integers(1, 5),
)
def test_updates_have_the_same_rows_on_any_number_of_ranks(
    num_rows: int, num_updates: int, world_size: int
) -> None:
    batch = plan_epoch(np.zeros(num_rows, np.int64), num_rows, seed=3, epoch=0)[0]
    num_updates = min(num_updates, num_rows)
    alone = [part.rows for part in rank_parts(batch, 0, 1, num_updates)]
    assert np.concatenate(alone).tolist() == batch.rows.tolist()
    sizes = [len(rows) for rows in alone]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    of_ranks = [rank_parts(batch, rank, world_size, num_updates) for rank in range(world_size)]
    for number, rows in enumerate(alone):
        parts = [of_rank[number].rows.tolist() for of_rank in of_ranks]
        assert [row for part in parts for row in part] == rows.tolist()
        assert len(parts[0]) == max(map(len, parts)) >= 1
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(
    repeats=st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.75, 2.5, 3.0, 0.1]), min_size=1, max_size=12),
    seed=st.integers(0, 2**40),
)
def test_each_time_that_a_row_is_shown_is_counted_in_order(repeats: list[float], seed: int) -> None:
    extra = BatchingOptions(repeats=np.array(repeats))
    column = np.arange(len(repeats)) % 2
    shown = Counter[int]()
    for epoch in range(7):
        plan = plan_epoch(column, 3, seed, epoch, extra)
        found: dict[int, list[int]] = {}
        for batch in (plan[i] for i in range(len(plan))):
            for row, showing in zip(batch.rows.tolist(), batch.showings.tolist(), strict=True):
                found.setdefault(row, []).append(showing)
        for row, showings in found.items():
            assert sorted(showings) == list(range(shown[row], shown[row] + len(showings)))
            shown[row] += len(showings)


def test_where_every_row_comes_once_the_epoch_counts() -> None:
    plan = plan_epoch(np.zeros(5, np.int64), 3, 0, 6)
    assert [plan[i].showings.tolist() for i in range(len(plan))] == [[6, 6, 6], [6, 6]]


def test_each_epoch_has_its_own_order_and_always_the_same() -> None:
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


PLANS = {
    "row_buckets": st.lists(st.integers(-1, 4), min_size=1, max_size=80),
    "seed": st.integers(0, 2**40),
    "epoch": st.integers(0, 50),
}


@settings(max_examples=100, deadline=None)
@given(
    **PLANS,
    batch_sizes=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    ranks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    data=st.data(),
)
def test_an_epoch_continues_with_any_number_of_ranks(
    row_buckets: list[int],
    seed: int,
    epoch: int,
    batch_sizes: list[int],
    ranks: list[int],
    data: st.DataObject,
) -> None:
    """Stopped anywhere and taken up by other numbers of ranks: every row once, in the same batches."""
    column, sizes = np.array(row_buckets), np.array(batch_sizes)
    plan = plan_epoch(column, sizes, seed, epoch)
    stops = sorted(data.draw(st.integers(0, len(plan))) for _ in ranks[1:])
    edges = [0, *stops, len(plan)]
    seen: list[int] = []
    for world_size, start, stop in zip(ranks, edges, edges[1:], strict=False):
        again = plan_epoch(column, sizes, seed, epoch)
        for i in range(start, stop):
            parts = [rank_parts(again[i], rank, world_size)[0].rows.tolist() for rank in range(world_size)]
            lengths = [len(part) for part in parts]
            assert max(lengths) - min(lengths) <= 1
            assert [row for part in parts for row in part] == plan[i].rows.tolist()
            assert len(plan[i].rows) <= batch_sizes[plan[i].bucket]
            seen += plan[i].rows.tolist()
    assert sorted(seen) == [i for i, bucket in enumerate(row_buckets) if bucket >= 0]


@settings(max_examples=200, deadline=None)
@given(
    **PLANS,
    batch_sizes=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    costs=st.none() | st.lists(st.integers(1, 30), min_size=80, max_size=80),
)
def test_short_batches_of_all_buckets_are_packed_into_few_updates(
    row_buckets: list[int], seed: int, epoch: int, batch_sizes: list[int], costs: list[int] | None
) -> None:
    """The same batches as without packing, and no update is fuller than a whole batch."""
    column, sizes, max_cost = np.array(row_buckets), np.array(batch_sizes), 40
    row_costs = None if costs is None else np.array(costs[: len(row_buckets)])
    extras = BatchingOptions(row_costs=row_costs, max_cost=max_cost if costs else 0)
    plain = plan_epoch(column, sizes, seed, epoch, extras)
    packed = plan_epoch(column, sizes, seed, epoch, replace(extras, packs=True))
    batches = [packed[i] for i in range(len(packed))]
    assert {tuple(b.rows) for b in batches} == {tuple(plain[i].rows) for i in range(len(plain))}
    fills = [
        len(b.rows) / sizes[b.bucket] if row_costs is None else row_costs[b.rows].sum() / max_cost
        for b in batches
    ]
    packs: list[list[float]] = []
    for i, fill in enumerate(fills):
        if i and packed.joins_next(i - 1):
            packs[-1].append(fill)
        else:
            packs.append([fill])
    assert all(sum(pack) <= 1 + 1e-9 for pack in packs if len(pack) > 1)
    if row_costs is None:
        assert sum(sum(pack) <= 0.5 for pack in packs) <= 1, "two updates would fit into one"


@settings(max_examples=100, deadline=None)
@given(**PLANS, costs=st.lists(st.integers(1, 30), min_size=80, max_size=80), max_cost=st.integers(1, 90))
def test_batches_by_cost_hold_every_row_and_are_as_full_as_can_be(
    row_buckets: list[int], seed: int, epoch: int, costs: list[int], max_cost: int
) -> None:
    row_costs = np.array(costs[: len(row_buckets)])
    extras = BatchingOptions(row_costs=row_costs, max_cost=max_cost)
    plan = plan_epoch(np.array(row_buckets), 1, seed, epoch, extras)
    batches = [plan[i] for i in range(len(plan))]
    rows = [int(row) for batch in batches for row in batch.rows]
    assert sorted(rows) == [i for i, bucket in enumerate(row_buckets) if bucket >= 0]
    for batch in batches:
        assert {row_buckets[row] for row in batch.rows} == {batch.bucket}
        assert len(batch.rows) == 1 or row_costs[batch.rows].sum() <= max_cost
    for bucket in set(row_buckets) - {-1}:
        mine = [row_costs[batch.rows].sum() for batch in batches if batch.bucket == bucket]
        # No two batches of a bucket would fit into one, but for what follows the order of the rows.
        assert len(mine) <= 2 * sum(mine) / max_cost + 1


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    repeats=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0]), min_size=4, max_size=60),
    first=st.integers(0, 100),
)
def test_four_epochs_hold_each_row_four_times_its_repeats(
    seed: int, repeats: list[float], first: int
) -> None:
    """To within one more turn: which rows come more often an epoch goes round."""
    extras = BatchingOptions(repeats=np.array(repeats))
    column = np.arange(len(repeats)) % 3
    counts = Counter(
        int(row)
        for epoch in range(first, first + 4)
        for row in plan_epoch(column, 4, seed, epoch, extras).rows
    )
    for row, times in enumerate(repeats):
        assert abs(counts[row] - 4 * times) <= 1
        assert (counts[row] == 4 * times) or times % 1


def test_buckets_are_mixed_in_proportion_to_their_size() -> None:
    """Each tenth of an epoch has of each bucket about a tenth."""
    column = np.repeat([0, 1, 2], [40_000, 8_000, 800])
    plan = plan_epoch(column, 4, 3, 0)
    for part in np.array_split(plan.buckets, 10):
        counts = np.bincount(part, minlength=3)
        expected = np.array([1000, 200, 20])
        assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_the_order_of_runs_that_were_begun_before_stays() -> None:
    """Written down when the first version was: a resumed run relies on it."""
    column = np.array([0, 1, 0, 2, 0, 1, 0, 0, 2, -1, 1, 0])
    plan = plan_epoch(column, 2, 7, 1)
    assert plan.rows.tolist() == [8, 3, 5, 10, 1, 4, 2, 0, 7, 11, 6]
    assert plan.starts.tolist() == [0, 2, 3, 5, 7, 9, 11]


def test_the_example_of_the_docstring() -> None:
    plan = plan_epoch(np.array([0, 1, 0, 0, 1, 0, 0]), 2, 7, 0)
    assert [batch.rows.tolist() for batch in map(plan.__getitem__, range(len(plan)))] == [
        [3],
        [0, 5],
        [4, 1],
        [6, 2],
    ]
