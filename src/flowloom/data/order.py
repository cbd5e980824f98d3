"""The order of samples: a pure function of seed and epoch, the same for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows of one bucket, over all ranks."""

    rows: NDArray[np.int64]
    showings: NDArray[np.int64]
    """How often each row was shown before, in this epoch and all before it."""
    bucket: int

    def part(self, start: int, stop: int) -> Batch:
        """Rows number `start` to `stop`, as views."""
        return Batch(self.rows[start:stop], self.showings[start:stop], self.bucket)


@dataclass(frozen=True)
class EpochPlan:
    """All batches of an epoch, in order."""

    epoch: int
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    buckets: NDArray[np.int64]
    joined: NDArray[np.bool_] | None = None
    """Whether a batch is trained in one update with the one before it; None: each alone."""
    showings: NDArray[np.int64] | None = None
    """See `Batch`; None: each row comes once an epoch."""

    def goes_on(self, index: int) -> bool:
        """Whether the next batch is trained in one update with this one."""
        return self.joined is not None and index + 1 < len(self) and bool(self.joined[index + 1])

    def updates_of(self, index: int, per_batch: int) -> int:
        """Updates that the rows of a batch are split into: `per_batch`, but no more than it has rows.

        Batches that are trained together make one.
        """
        is_joined = self.joined is not None and bool(self.joined[index])
        if is_joined or self.goes_on(index):
            return 1
        return min(per_batch, int(self.starts[index + 1] - self.starts[index]))

    def num_updates(self, per_batch: int) -> int:
        """Updates of the epoch, where a batch makes `per_batch`, but no more than it has rows; a pack one."""
        each = np.minimum(np.diff(self.starts), per_batch)
        if self.joined is not None:
            each[np.append(self.joined[1:], False) | self.joined] = 1
            each[self.joined] = 0
        return int(each.sum())

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> Batch:
        start, stop = self.starts[index], self.starts[index + 1]
        once = np.full(stop - start, self.epoch) if self.showings is None else self.showings[start:stop]
        return Batch(self.rows[start:stop], once, int(self.buckets[index]))


@dataclass(frozen=True)
class BatchingOptions:
    """What a plan does beyond every row once, in batches of a number of rows."""

    repeats: NDArray[np.float64] | None = None
    """(N,) times that each row comes an epoch, on average; None: once."""
    row_costs: NDArray[np.int64] | None = None
    """(N,) what each row costs; batches are then filled up to `max_cost` instead of to a number of rows."""
    max_cost: int = 0
    packs: bool = False
    """Short batches, the last ones of their buckets, are joined to updates of up to a whole batch."""

    @property
    def is_steady(self) -> bool:
        """Whether every epoch has the same number of batches."""
        return self.repeats is None and self.row_costs is None


DEFAULT_BATCHING = BatchingOptions()


def plan_epoch(
    row_buckets: NDArray[np.int64],
    batch_size: int | NDArray[np.int64],
    seed: int,
    epoch: int,
    batching: BatchingOptions = DEFAULT_BATCHING,
) -> EpochPlan:
    """Batches of an epoch: each row once, one bucket a batch, in an order drawn from seed and epoch.

    The last batch of a bucket may be short: no row is dropped or repeated, unless `batching` says so.
    For example, with buckets 0 1 0 0 1 0 0, batch size 2, seed 7 and epoch 0:

        rows, shuffled               0 5 6 2 4 1 3
        sorted by bucket             0 5 6 2 3 | 4 1
        cut into batches             (0 5) (6 2) (3) | (4 1)
        batches, shuffled            (3) (0 5) (4 1) (6 2)

    Args:
        row_buckets: (N,) each row's bucket, negative for rows that are left out.
        batch_size: rows per batch, one number for all buckets or one for each.
    """
    draw = np.random.default_rng([seed & 0xFFFFFFFF, epoch])
    rows, showings = np.flatnonzero(row_buckets >= 0), None
    if batching.repeats is None:
        draw.shuffle(rows)
    else:
        rows, showings = _repeated(rows, batching.repeats, seed, epoch)
        shuffled = np.arange(len(rows))
        draw.shuffle(shuffled)
        rows, showings = rows[shuffled], showings[shuffled]
    of_row = row_buckets[rows]
    num_buckets = int(of_row.max(initial=-1)) + 1
    # Sorting numbers of 16 bits is counting them.
    by_bucket = np.argsort(of_row.astype(np.uint16) if num_buckets < 2**16 else of_row, kind="stable")
    rows = rows[by_bucket]
    counts = np.bincount(of_row, minlength=num_buckets)
    starts = _cuts(rows, counts, batch_size, batching)
    edges = np.append(starts, len(rows))
    of_batch = np.searchsorted(np.cumsum(counts), starts, side="right")
    order, joined = draw.permutation(len(starts)), None
    if batching.packs:
        order, joined = _packed(order, _fills(rows, edges, of_batch, batch_size, batching))
    lengths = np.diff(edges)[order]
    new_starts = np.concatenate(([0], np.cumsum(lengths)))
    moved = np.arange(len(rows)) + np.repeat(starts[order] - new_starts[:-1], lengths)
    if showings is not None:
        showings = showings[by_bucket][moved]
    return EpochPlan(epoch, rows[moved], new_starts, of_batch[order], joined, showings)


def _fills(
    rows: NDArray[np.int64],
    edges: NDArray[np.int64],
    of_batch: NDArray[np.int64],
    batch_size: int | NDArray[np.int64],
    batching: BatchingOptions,
) -> NDArray[np.float64]:
    """How full the last batch of each bucket is, from 0 to 1; 1 for all other batches."""
    if batching.row_costs is None:
        fills = np.diff(edges) / (batch_size if isinstance(batch_size, int) else batch_size[of_batch])
    else:
        fills = np.diff(np.append(0, np.cumsum(batching.row_costs[rows]))[edges]) / batching.max_cost
    is_last = np.append(of_batch[1:] != of_batch[:-1], True)[: len(of_batch)]
    return np.where(is_last, np.minimum(fills, 1.0), 1.0)


def _packed(
    order: NDArray[np.int64], fills: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """`order` with batches that are not full moved behind others of which they fill up the update."""
    groups: list[list[int]] = []
    room: list[float] = []
    short = order[fills[order] < 1.0]
    for batch, fill in zip(short.tolist(), fills[short].tolist(), strict=True):
        fitting = next((i for i, free in enumerate(room) if fill <= free), None)
        if fitting is None:
            groups.append([])
            room.append(1.0)
            fitting = -1
        groups[fitting].append(batch)
        room[fitting] -= fill
    followers = {group[0]: group[1:] for group in groups}
    moved = np.isin(order, [batch for group in groups for batch in group[1:]])
    units = [[batch, *followers.get(batch, [])] for batch in order[~moved].tolist()]
    joined = [is_follower for unit in units for is_follower in [False, *[True] * (len(unit) - 1)]]
    flat = [batch for unit in units for batch in unit]
    return np.array(flat, dtype=np.int64), np.array(joined, dtype=bool)


def _repeated(
    rows: NDArray[np.int64], repeats: NDArray[np.float64], seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`rows` as many times each as `repeats` says for the epoch, and how often each was shown before.

    Where `repeats` is no whole number, rows with the same fraction take turns: of n such rows about
    fraction * n get one more each epoch, the next ones in a fixed random circle.
    """
    times = np.floor(repeats[rows]).astype(np.int64)
    before = times * epoch
    fractions = repeats[rows] - times
    for fraction in np.unique(fractions[fractions > 0]):
        mine = np.flatnonzero(fractions == fraction)
        np.random.default_rng([seed & 0xFFFFFFFF, 2]).shuffle(mine)
        # Where an epoch ends in the circle, the next one begins.
        start, stop = (round(edge * fraction * len(mine)) for edge in (epoch, epoch + 1))
        times[mine[np.arange(start, stop) % len(mine)]] += 1
        # The places 0 to `start` were taken before: of the first ones in the circle, each once more.
        before[mine] += start // len(mine)
        before[mine[: start % len(mine)]] += 1
    firsts = np.repeat(np.cumsum(times) - times, times)
    return np.repeat(rows, times), np.repeat(before, times) + np.arange(len(firsts)) - firsts


def _cuts(
    rows: NDArray[np.int64],
    counts: NDArray[np.int64],
    batch_size: int | NDArray[np.int64],
    batching: BatchingOptions,
) -> NDArray[np.int64]:
    """Where batches start in `rows`, which are sorted by bucket, `counts` of each."""
    ends = np.cumsum(counts)
    firsts = ends - counts
    sizes = np.full(len(counts), batch_size) if isinstance(batch_size, int) else batch_size[: len(counts)]
    if batching.row_costs is None:
        each = -(-counts // sizes)
        first_batches = np.cumsum(each) - each
        number = np.arange(each.sum()) - np.repeat(first_batches, each)
        return np.repeat(firsts, each) + number * np.repeat(sizes, each)
    return _cuts_by_cost(batching.row_costs[rows], firsts, ends, batching.max_cost)


def _cuts_by_cost(
    costs: NDArray[np.int64], firsts: NDArray[np.int64], ends: NDArray[np.int64], max_cost: int
) -> NDArray[np.int64]:
    """Where batches start that take rows while these cost up to `max_cost` together; always one row."""
    before = np.cumsum(costs) - costs
    # For each row, where the next batch would start if one started there.
    following = np.searchsorted(before + costs, before + max_cost, side="right")
    following = np.maximum(following, np.arange(len(costs)) + 1).tolist()
    starts: list[int] = []
    for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
        position = first
        while position < end:
            starts.append(position)
            position = following[position]
    return np.array(starts, dtype=np.int64)


def rank_parts(batch: Batch, rank: int, world_size: int, num_updates: int = 1) -> list[Batch]:
    """What `rank` trains of `batch` in each of its updates: contiguous slices, even to within one.

    The batch is split into updates first and each update into ranks, so that the number of ranks does not
    change which rows are trained together. The first ranks get the larger slices: of a single row rank 0,
    which reports, has it.
    """
    edges = len(batch.rows) * np.arange(num_updates + 1) // num_updates
    parts = []
    for start, stop in pairwise(edges.tolist()):
        first, last = (start - -(stop - start) * number // world_size for number in (rank, rank + 1))
        parts.append(batch.part(first, last))
    return parts
