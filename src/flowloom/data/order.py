"""The order of samples: a pure function of seed and epoch, the same for any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows of one bucket, over all ranks."""

    rows: NDArray[np.int64]
    bucket: int


@dataclass(frozen=True)
class EpochPlan:
    """All batches of an epoch, in order."""

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    buckets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, index: int) -> Batch:
        start, stop = self.starts[index], self.starts[index + 1]
        return Batch(self.rows[start:stop], int(self.buckets[index]))


def plan_epoch(row_buckets: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> EpochPlan:
    """Every row of a bucket (0 or more) once, in batches of one bucket, shuffled anew each epoch.

    The last batch of a bucket is as short as it comes: nothing is dropped and nothing repeated.
    """
    draw = np.random.default_rng([seed & 0xFFFFFFFF, epoch])
    rows = np.flatnonzero(row_buckets >= 0)
    draw.shuffle(rows)
    rows = rows[np.argsort(row_buckets[rows], kind="stable")]
    buckets, first, counts = np.unique(row_buckets[rows], return_index=True, return_counts=True)
    cuts = [np.arange(f, f + c, batch_size) for f, c in zip(first, counts, strict=True)]
    starts = np.concatenate(cuts) if cuts else np.zeros(0, np.int64)
    stops = np.append(starts[1:], len(rows))
    of_batch = np.repeat(buckets, [len(cut) for cut in cuts])
    order = draw.permutation(len(starts))
    shuffled = np.concatenate([rows[starts[i] : stops[i]] for i in order]) if len(order) else rows
    lengths = (stops - starts)[order]
    return EpochPlan(shuffled, np.concatenate(([0], np.cumsum(lengths))), of_batch[order])


def rank_rows(batch: Batch, rank: int, world_size: int) -> NDArray[np.int64]:
    """The rows of `batch` that `rank` trains: contiguous slices, even to within one."""
    edges = len(batch.rows) * np.arange(world_size + 1) // world_size
    return batch.rows[edges[rank] : edges[rank + 1]]
