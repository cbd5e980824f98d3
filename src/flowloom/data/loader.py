"""The rows of a JSONL as batches of captions and pixels, read ahead."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowloom.data.buckets import LEFT_OUT
from flowloom.data.captions import CaptionRules, vary
from flowloom.data.dataset import Dataset, Size
from flowloom.data.fetch.fetcher import Fetch
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.images.decode import load_image
from flowloom.data.images.masks import load_mask
from flowloom.data.metadata import Row
from flowloom.data.order import Batch, EpochPlan, rank_parts
from flowloom.data.prefetch import in_background
from flowloom.errors import DataError, ImageError
from flowloom.storage.base import shown

if TYPE_CHECKING:
    from torch import Tensor

    from flowloom.data.cache.encodings import EncodingCache, ImageInBucket

ROWS_AHEAD = 512
"""Rows whose pictures are asked of a store before their turn to be decoded; bytes are bounded besides."""

__all__ = ["Dataset", "LoadedBatch", "Loader", "Sample", "Size", "Skipped"]


@dataclass(frozen=True)
class Sample:
    """One row as it is trained."""

    row: int
    line: int
    filename: str
    caption: str
    loss_weight: float
    pixels: NDArray[np.uint8] | None
    """(h, w, 3), or None if the image is cached."""
    mask: NDArray[np.uint8] | None = None
    """(h, w), 255 where the loss counts in full; None: everywhere."""
    dataset: int = 0
    """Which of several data sets it belongs to."""
    latents: Tensor | None = None
    """From the cache, as the autoencoder gave them; None: to be encoded from `pixels`."""
    showing: int = 0
    """How often the row was shown before; everything that varies from one time to the next is drawn by it."""


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
    update_sizes: list[int]
    """How many of `samples` belong to each update of the global batch; some may be 0 on this rank."""
    goes_on: bool = False
    """Whether the next batch, of another bucket, belongs to the same update."""


@dataclass(frozen=True)
class _Begun:
    """A row, and its picture on its way where that lies in a store."""

    row: Row
    showing: int
    fetch: Fetch | None


@dataclass(frozen=True)
class _Place:
    """A batch that is being read."""

    plan: EpochPlan
    epoch: int
    number: int

    @property
    def bucket(self) -> int:
        return self.plan[self.number].bucket

    def parts(self, updates_per_batch: int, rank: int, world_size: int) -> list[Batch]:
        """This rank's rows of each update."""
        num_updates = self.plan.updates_of(self.number, updates_per_batch)
        return rank_parts(self.plan[self.number], rank, world_size, num_updates)


@dataclass(kw_only=True)
class Loader:
    """Batches of `dataset` for one rank, read by `threads` threads up to `prefetch` batches ahead."""

    dataset: Dataset
    rules: CaptionRules
    seed: int
    rank: int
    world_size: int
    batch_size: int
    """Rows a batch, where the data set's buckets have no size of their own."""
    threads: int
    prefetch: int
    latents: EncodingCache[ImageInBucket]
    """Images whose latents it has are not read."""
    images: ImageSource = field(default_factory=ImageSource)
    updates_per_batch: int = 1
    """Updates that each global batch is split into."""

    def __post_init__(self) -> None:
        self._plans = {0: self.dataset.plan(self.batch_size, self.seed, 0)}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        # Only where rows take turns do epochs differ in their number.
        known = next(iter(self._plans.values()))
        return len(known if self.dataset.batching.is_steady else self._plan(epoch))

    def _plan(self, epoch: int) -> EpochPlan:
        known = self._plans
        if epoch not in known:
            # The epoch that is trained, and the one that is read ahead, in a thread of its own.
            known = dict(list(known.items())[-1:])
            known[epoch] = self.dataset.plan(self.batch_size, self.seed, epoch)
            self._plans = known
        return known[epoch]

    def batches(self, epoch: int, start: int = 0) -> Iterator[LoadedBatch]:
        """The batches of `epoch` from number `start` on, in order."""
        return self._read((epoch, number) for number in range(start, self.num_batches(epoch)))

    def endless(
        self, epoch: int, start: int = 0, is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[LoadedBatch]:
        """The batches from number `start` of `epoch` on, epoch after epoch, read ahead over their ends.

        They end when `is_stopped` says so while the next one is waited for.

        Raises:
            DataError: there is nothing to train.
        """
        # Where rows take turns an epoch may be empty, and the next one is not.
        if not (self.dataset.row_buckets != LEFT_OUT).any():
            raise DataError(f"{self.dataset.path}: {self.dataset.why_empty}")
        return in_background(self._read(self._places(epoch, start)), is_stopped)

    def _places(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        while True:
            for number in range(start, self.num_batches(epoch)):
                yield epoch, number
            epoch, start = epoch + 1, 0

    def _read(self, places: Iterator[tuple[int, int]]) -> Generator[LoadedBatch]:
        """The batches at (epoch, number): first begun, so that stores are asked early, then decoded."""
        begun: deque[tuple[_Place, list[Future[_Begun | Skipped]]]] = deque()
        waiting: deque[tuple[_Place, list[Future[_Begun | Skipped]], list[Future[Sample | Skipped]]]] = (
            deque()
        )
        ahead = self.prefetch + min(ROWS_AHEAD, len(self.dataset.metadata)) // self.batch_size
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            try:
                while True:
                    while len(begun) <= ahead and (at := next(places, None)) is not None:
                        place = _Place(self._plan(at[0]), *at)
                        begun.append((place, self._begin(pool, place)))
                    while begun and len(waiting) <= self.prefetch:
                        place, rows = begun.popleft()
                        size = self.dataset.sizes[place.bucket]
                        samples = [pool.submit(self._load, row, size) for row in rows]
                        waiting.append((place, rows, samples))
                    if not waiting:
                        return
                    place, _, samples = waiting.popleft()
                    yield self._collect(place, samples)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for future in itertools.chain(*(rows for _, rows, *_ in (*begun, *waiting))):
                    _give_up(future)

    def _begin(self, pool: ThreadPoolExecutor, place: _Place) -> list[Future[_Begun | Skipped]]:
        size = self.dataset.sizes[place.bucket]
        parts = place.parts(self.updates_per_batch, self.rank, self.world_size)
        rows = np.concatenate([part.rows for part in parts]).tolist()
        showings = np.concatenate([part.showings for part in parts]).tolist()
        begun = zip(rows, showings, strict=True)
        return [pool.submit(self._begin_row, row, showing, size) for row, showing in begun]

    def _begin_row(self, index: int, showing: int, size: Size) -> _Begun | Skipped:
        data = self.dataset
        try:
            row = data.metadata.row(index)
        except DataError as error:
            return Skipped(int(data.metadata.lines[index]), "", str(error))
        one = data.source_of(row)
        if data.dummy_image or not self.images.is_remote(row, one.folder):
            return _Begun(row, showing, None)
        try:
            is_wanted = one.mask == "alpha" or not self.latents.has((index, size))
        except ImageError as error:
            return Skipped(row.line, shown(row.filename), str(error), row.dataset)
        return _Begun(row, showing, self.images.prefetch(row, one.folder) if is_wanted else None)

    def _collect(self, place: _Place, futures: list[Future[Sample | Skipped]]) -> LoadedBatch:
        results = [future.result() for future in futures]
        usable = iter([isinstance(result, Sample) for result in results])
        parts = place.parts(self.updates_per_batch, self.rank, self.world_size)
        update_sizes = [sum(islice(usable, len(part.rows))) for part in parts]
        return LoadedBatch(
            epoch=place.epoch,
            index=place.number,
            size=self.dataset.sizes[place.bucket],
            samples=[result for result in results if isinstance(result, Sample)],
            skipped=[result for result in results if isinstance(result, Skipped)],
            update_sizes=update_sizes,
            goes_on=place.plan.goes_on(place.number),
        )

    def _load(self, future: Future[_Begun | Skipped], size: Size) -> Sample | Skipped:
        begun = future.result()
        if isinstance(begun, Skipped):
            return begun
        row = begun.row
        try:
            (latents,) = self.latents.get([(row.index, size)])
            is_cached = latents is not None or self.latents.has((row.index, size))
            pixels, mask = self._image(begun, size, needs_pixels=not is_cached)
        except ImageError as error:
            return Skipped(row.line, shown(row.filename), str(error), row.dataset)
        finally:
            if begun.fetch:
                begun.fetch.cancel()
        return Sample(
            row=row.index,
            line=row.line,
            filename=row.filename,
            caption=vary(row, begun.showing, self.rules, self.seed),
            loss_weight=row.loss_weight * self.dataset.source_of(row).loss_weight,
            pixels=pixels,
            mask=mask,
            dataset=row.dataset,
            latents=latents,
            showing=begun.showing,
        )

    def _image(
        self, begun: _Begun, size: Size, *, needs_pixels: bool
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """The pixels if needed, and the mask if the dataset has any."""
        data, row = self.dataset, begun.row
        one = data.source_of(row)
        if data.dummy_image:
            return np.zeros((size[1], size[0], 3), np.uint8) if needs_pixels else None, None
        source = None
        if needs_pixels or one.mask == "alpha":
            source = self.images.get(row, one.folder, begun.fetch)
        pixels = mask = None
        if needs_pixels and source is not None:
            pixels = load_image(source, size, data.background, data.max_megapixels)
        if one.mask != "none":
            mask = load_mask(one, row, source, size, data.max_megapixels)
        return pixels, mask


def _give_up(future: Future[_Begun | Skipped]) -> None:
    """Whoever waits for a picture of a store that is down need not wait any more."""
    if future.done() and not future.cancelled() and not future.exception():
        begun = future.result()
        if isinstance(begun, _Begun) and begun.fetch:
            begun.fetch.cancel()
