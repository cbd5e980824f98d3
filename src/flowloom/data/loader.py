"""The rows of a JSONL as batches of captions and pixels, read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
from numpy.typing import NDArray

from flowloom.data.captions import CaptionRules, vary
from flowloom.data.dataset import DataSet, Size
from flowloom.data.images import load_image
from flowloom.data.masks import load_mask
from flowloom.data.metadata import Row
from flowloom.data.order import EpochPlan, rank_rows
from flowloom.errors import DataError, ImageError
from flowloom.parts.sources.http import fetch_image
from flowloom.parts.sources.local import find_image

__all__ = ["DataSet", "LoadedBatch", "Loader", "Sample", "Size", "Skipped"]


@dataclass(frozen=True)
class Sample:
    """One row as it is trained."""

    row: int
    line: int
    filename: str
    caption: str
    loss_weight: float
    pixels: NDArray[np.uint8] | None
    """(h, w, 3), or None where nobody needs them."""
    mask: NDArray[np.uint8] | None = None
    """(h, w), 255 where the loss counts in full; None: everywhere."""
    dataset: int = 0
    """Which of several data sets it belongs to."""


@dataclass(frozen=True)
class Skipped:
    """A row that could not be used."""

    line: int
    filename: str
    reason: str
    dataset: int = 0


@dataclass(frozen=True)
class LoadedBatch:
    """This rank's part of a global batch."""

    epoch: int
    index: int
    size: Size
    """Width and height of the bucket in pixels."""
    samples: list[Sample]
    skipped: list[Skipped]
    num_planned: int
    """Rows of the global batch, over all ranks."""


@dataclass(kw_only=True)
class Loader:
    """Batches of `dataset` for one rank, read by `threads` threads up to `prefetch` batches ahead."""

    dataset: DataSet
    rules: CaptionRules
    seed: int
    rank: int
    world_size: int
    batch_size: int
    """Rows a batch, where the data set's buckets have no size of their own."""
    threads: int
    prefetch: int
    needs_pixels: Callable[[int, Size], bool]
    """Whether the image of a row is wanted for a bucket: not where its latents are at hand."""

    def __post_init__(self) -> None:
        self._session = requests.Session()
        self._plans = {0: self.dataset.plan(self.batch_size, self.seed, 0)}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        # Only where rows take turns do epochs differ in their number.
        known = next(iter(self._plans.values()))
        return len(known if self.dataset.extras.is_steady else self._plan(epoch))

    def _plan(self, epoch: int) -> EpochPlan:
        if epoch not in self._plans:
            # The epoch that is trained, and the one that is read ahead.
            kept = dict(list(self._plans.items())[-1:])
            self._plans = kept | {epoch: self.dataset.plan(self.batch_size, self.seed, epoch)}
        return self._plans[epoch]

    def batches(self, epoch: int, start: int = 0) -> Iterator[LoadedBatch]:
        """The batches of `epoch` from number `start` on, in order."""
        return self._read((epoch, number) for number in range(start, self.num_batches(epoch)))

    def endless(self, epoch: int, start: int = 0) -> Iterator[LoadedBatch]:
        """The batches from number `start` of `epoch` on, epoch after epoch, read ahead over their ends.

        Raises:
            DataError: there is nothing to train.
        """
        if not self.num_batches(epoch):
            raise DataError(f"{self.dataset.path}: no row is left to train on.")
        return self._read(self._places(epoch, start))

    def _places(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        while True:
            for number in range(start, self.num_batches(epoch)):
                yield epoch, number
            epoch, start = epoch + 1, 0

    def _read(self, places: Iterator[tuple[int, int]]) -> Iterator[LoadedBatch]:
        """The batches at (epoch, number)."""
        waiting: deque[tuple[EpochPlan, int, int, list[Future[Sample | Skipped]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            try:
                while True:
                    while len(waiting) <= self.prefetch and (place := next(places, None)) is not None:
                        plan = self._plan(place[0])
                        waiting.append((plan, *place, self._submit(pool, plan, *place)))
                    if not waiting:
                        return
                    yield self._collect(*waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _submit(
        self, pool: ThreadPoolExecutor, plan: EpochPlan, epoch: int, number: int
    ) -> list[Future[Sample | Skipped]]:
        batch = plan[number]
        size = self.dataset.sizes[batch.bucket]
        rows = rank_rows(batch, self.rank, self.world_size)
        return [pool.submit(self._load, int(row), size, epoch) for row in rows]

    def _collect(
        self, plan: EpochPlan, epoch: int, number: int, futures: list[Future[Sample | Skipped]]
    ) -> LoadedBatch:
        results = [future.result() for future in futures]
        return LoadedBatch(
            epoch=epoch,
            index=number,
            size=self.dataset.sizes[plan[number].bucket],
            samples=[result for result in results if isinstance(result, Sample)],
            skipped=[result for result in results if isinstance(result, Skipped)],
            num_planned=len(plan[number].rows),
        )

    def _load(self, index: int, size: Size, epoch: int) -> Sample | Skipped:
        data = self.dataset
        try:
            row = data.metadata.row(index)
        except DataError as error:
            return Skipped(int(data.metadata.lines[index]), "", str(error))
        one = data.set_of(row)
        try:
            pixels, mask = self._picture(row, size)
        except ImageError as error:
            return Skipped(row.line, row.filename, str(error), row.dataset)
        caption = vary(row, epoch, self.rules, self.seed)
        loss_weight = row.loss_weight * one.loss_weight
        return Sample(index, row.line, row.filename, caption, loss_weight, pixels, mask, row.dataset)

    def _picture(self, row: Row, size: Size) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """What is wanted of the pixels, and the mask where the data set has any."""
        data, one = self.dataset, self.dataset.set_of(row)
        is_wanted = self.needs_pixels(row.index, size)
        if data.dummy_image:
            return np.zeros((size[1], size[0], 3), np.uint8) if is_wanted else None, None
        source = self._source(row) if is_wanted or one.mask == "alpha" else None
        pixels = mask = None
        if is_wanted and source is not None:
            pixels = load_image(source, size, data.background, data.max_megapixels)
        if one.mask != "none":
            mask = load_mask(one, row, source, size, data.max_megapixels)
        return pixels, mask

    def _source(self, row: Row) -> bytes | Path:
        """Where the picture of `row` comes from: the one place that knows."""
        if row.is_url_based:
            return fetch_image(row.filename, self._session)
        return find_image(self.dataset.set_of(row).folder, row.filename)
