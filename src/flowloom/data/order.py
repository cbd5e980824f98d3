"""The order of samples: a pure function of seed and epoch, the same for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowBatch:
    """Rows of one bucket, over all ranks."""

    rows: NDArray[np.int64]
    showings: NDArray[np.int64]
    """Number of times that each row was shown before, in this epoch and all earlier ones."""
    bucket: int

    def part(self, start: int, stop: int) -> RowBatch:
        """Views of the rows from number `start` to `stop`."""
        return RowBatch(self.rows[start:stop], self.showings[start:stop], self.bucket)


@dataclass(frozen=True)
class EpochPlan:
    """All batches of an epoch, in order."""

    epoch: int
    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    buckets: NDArray[np.int64]
    joined: NDArray[np.bool_] | None = None
    """(B,) True for a batch that is trained in one update with the one before it; None: no batch is."""
    showings: NDArray[np.int64] | None = None
    """See `RowBatch`; None: each row is shown once per epoch."""

    def joins_next(self, index: int) -> bool:
        """True if the next batch is trained in one update with this one."""
        return self.joined is not None and index + 1 < len(self) and bool(self.joined[index + 1])

    def updates_of(self, index: int, per_batch: int) -> int:
        """Updates that a batch is split into: `per_batch`, but at most its number of rows.

        Batches that are trained together make one update.
        """
        is_joined = self.joined is not None and bool(self.joined[index])
        if is_joined or self.joins_next(index):
            return 1
        return min(per_batch, int(self.starts[index + 1] - self.starts[index]))

    def num_updates(self, per_batch: int) -> int:
        """Updates of the epoch: the sum of `updates_of`, with one for each pack of joined batches."""
        counts = np.minimum(np.diff(self.starts), per_batch)
        if self.joined is not None:
            counts[np.append(self.joined[1:], False) | self.joined] = 1
            counts[self.joined] = 0
        return int(counts.sum())

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> RowBatch:
        start, stop = self.starts[index], self.starts[index + 1]
        showings = np.full(stop - start, self.epoch) if self.showings is None else self.showings[start:stop]
        return RowBatch(self.rows[start:stop], showings, int(self.buckets[index]))


@dataclass(frozen=True)
class BatchingOptions:
    """Deviations from a plan that shows each row once, in batches of a fixed number of rows."""

    repeats: NDArray[np.float64] | None = None
    """(N,) times that each row is shown per epoch, on average; None: once."""
    row_costs: NDArray[np.int64] | None = None
    """(N,) cost of each row; batches are then filled up to `max_cost` instead of a number of rows."""
    max_cost: int = 0
    packs: bool = False
    """Join the short batches at the ends of buckets into updates of at most one full batch."""

    @property
    def is_steady(self) -> bool:
        """True if every epoch has the same number of batches."""
        return self.repeats is None and self.row_costs is None


DEFAULT_BATCHING = BatchingOptions()


def plan_epoch(
    row_buckets: NDArray[np.int64],
    batch_size: int | NDArray[np.int64],
    seed: int,
    epoch: int,
    batching: BatchingOptions = DEFAULT_BATCHING,
) -> EpochPlan:
    """Batches of an epoch: each row once, one bucket per batch, in an order drawn from seed and epoch.

    The last batch of a bucket may be short: no row is dropped, and only `batching` repeats rows.
    For example, with buckets 0 1 0 0 1 0 0, batch size 2, seed 7 and epoch 0:

        rows, shuffled               0 5 6 2 4 1 3
        sorted by bucket             0 5 6 2 3 | 4 1
        cut into batches             (0 5) (6 2) (3) | (4 1)
        batches, shuffled            (3) (0 5) (4 1) (6 2)

    Args:
        row_buckets: (N,) each row's bucket, negative for rows to leave out.
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
    # numpy sorts 16-bit numbers by counting, which is faster.
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
    """(B,) fill of the last batch of each bucket, 0 to 1; 1 for all other batches."""
    if batching.row_costs is None:
        fills = np.diff(edges) / (batch_size if isinstance(batch_size, int) else batch_size[of_batch])
    else:
        fills = np.diff(np.append(0, np.cumsum(batching.row_costs[rows]))[edges]) / batching.max_cost
    is_last = np.append(of_batch[1:] != of_batch[:-1], True)[: len(of_batch)]
    return np.where(is_last, np.minimum(fills, 1.0), 1.0)


def _packed(
    order: NDArray[np.int64], fills: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """`order` with short batches moved behind the short batches whose update they join, and `joined`."""
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
    """`rows` repeated for the epoch, and the number of times that each was shown before.

    With fractional `repeats`, rows with the same fraction alternate: about fraction * n of n such rows are
    shown once more in each epoch, the next ones in a fixed random circle.
    """
    times = np.floor(repeats[rows]).astype(np.int64)
    before = times * epoch
    fractions = repeats[rows] - times
    for fraction in np.unique(fractions[fractions > 0]):
        mine = np.flatnonzero(fractions == fraction)
        np.random.default_rng([seed & 0xFFFFFFFF, 2]).shuffle(mine)
        # Each epoch starts where the last one ended in the circle.
        start, stop = (round(edge * fraction * len(mine)) for edge in (epoch, epoch + 1))
        times[mine[np.arange(start, stop) % len(mine)]] += 1
        # Earlier epochs took positions 0 to `start`: full circles, and once more for the first rows.
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
    """Start of each batch in `rows`, which are sorted by bucket with `counts` rows each."""
    ends = np.cumsum(counts)
    firsts = ends - counts
    sizes = np.full(len(counts), batch_size) if isinstance(batch_size, int) else batch_size[: len(counts)]
    if batching.row_costs is None:
        num_batches = -(-counts // sizes)
        first_batches = np.cumsum(num_batches) - num_batches
        numbers = cast("NDArray[np.int64]", np.arange(num_batches.sum()))
        number = numbers - np.repeat(first_batches, num_batches)
        return np.repeat(firsts, num_batches) + number * np.repeat(sizes, num_batches)
    return _cuts_by_cost(batching.row_costs[rows], firsts, ends, batching.max_cost)


def _cuts_by_cost(
    costs: NDArray[np.int64], firsts: NDArray[np.int64], ends: NDArray[np.int64], max_cost: int
) -> NDArray[np.int64]:
    """Start of each batch when a batch takes rows up to a sum of `max_cost`, and at least one row."""
    before = np.cumsum(costs) - costs
    # For each row: the start of the next batch if a batch started there.
    following = np.searchsorted(before + costs, before + max_cost, side="right")
    following = np.maximum(following, np.arange(len(costs)) + 1).tolist()
    starts: list[int] = []
    for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
        position = first
        while position < end:
            starts.append(position)
            position = following[position]
    return np.array(starts, dtype=np.int64)


def rank_parts(batch: RowBatch, rank: int, world_size: int, num_updates: int = 1) -> list[RowBatch]:
    """This rank's rows of `batch` in each of its updates: contiguous slices that differ by one row at most.

    The batch is split into updates first and each update into ranks, so that the number of ranks does not
    change which rows are trained together. The first ranks get the larger slices, so a single row goes to
    rank 0, which reports.
    """
    edges = len(batch.rows) * np.arange(num_updates + 1) // num_updates
    parts: list[RowBatch] = []
    for start, stop in pairwise(edges.tolist()):
        first, last = (start - -(stop - start) * number // world_size for number in (rank, rank + 1))
        parts.append(batch.part(first, last))
    return parts
