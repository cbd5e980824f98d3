"""Batches of captions, and of pixels or cached latents, loaded ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowloom.data.buckets import LEFT_OUT, Bucket
from flowloom.data.captions import CaptionRules, vary
from flowloom.data.dataset import Dataset, Size
from flowloom.data.fetch.fetcher import Fetch
from flowloom.data.fetch.image_source import ImageSource
from flowloom.data.images.decode import load_image
from flowloom.data.images.masks import load_mask
from flowloom.data.metadata import Row
from flowloom.data.order import EpochPlan, RowBatch, rank_parts
from flowloom.data.prefetch import in_background
from flowloom.data.subjects import Reference, prompt_of
from flowloom.data.video.decode import Clip, load_clip
from flowloom.errors import DataError, ImageError
from flowloom.storage.base import shown

if TYPE_CHECKING:
    from torch import Tensor

    from flowloom.data.cache.encodings import ConditioningCache, EncodingCache
    from flowloom.data.references import ReferenceReader
    from flowloom.data.subjects import Encoded

ROWS_AHEAD = 512
"""Rows whose images are requested from a store ahead of decoding; `read_ahead_mib` limits their bytes."""

__all__ = ["Dataset", "Loader", "Sample", "SampleBatch", "Size", "Skipped"]


@dataclass(frozen=True)
class Sample:
    """One row as it is trained."""

    row: int
    line: int
    filename: str
    caption: str
    loss_weight: float
    pixels: NDArray[np.uint8] | None
    """(h, w, 3), or (f, h, w, 3) for a model that trains on video; None if the latents are cached."""
    mask: NDArray[np.uint8] | None = None
    """(h, w), 255 for the full loss weight; None: full weight everywhere."""
    dataset: int = 0
    """Number of its dataset."""
    latents: Tensor | None = None
    """The autoencoder's output from the cache; None: encode `pixels`."""
    showing: int = 0
    """Number of times that the row was shown before; seeds everything that varies between these times."""
    num_references: int = 0
    """Images that the image was edited from."""
    references: tuple[NDArray[np.uint8], ...] = ()
    """Pixels (h, w, 3) of each of them; empty if their encodings are cached."""


@dataclass(frozen=True)
class Skipped:
    """A row that cannot be used."""

    line: int
    filename: str
    reason: str
    dataset: int = 0


@dataclass(frozen=True)
class SampleBatch:
    """This rank's part of a global batch."""

    epoch: int
    index: int
    size: Size
    """Width and height of the bucket in pixels."""
    samples: list[Sample]
    skipped: list[Skipped]
    update_sizes: list[int]
    """Number of `samples` in each update of the global batch; may be 0 on this rank."""
    joins_next: bool = False
    """True if the next batch, of another bucket, belongs to the same update."""
    num_frames: int = 1
    """Frames of each sample; 1 for images."""

    @property
    def bucket(self) -> Bucket:
        """The bucket of all samples."""
        return Bucket(*self.size, self.num_frames)


@dataclass(frozen=True)
class _StartedRow:
    """A row, and the download of its image if that is in a store."""

    row: Row
    showing: int
    fetch: Fetch | None


@dataclass(frozen=True)
class _PendingBatch:
    """A batch on its way through the loader's threads."""

    plan: EpochPlan
    epoch: int
    number: int
    rows: list[Future[_StartedRow | Skipped]] = field(default_factory=list)
    samples: list[Future[Sample | Skipped]] = field(default_factory=list)

    @property
    def bucket(self) -> int:
        return self.plan[self.number].bucket

    def parts(self, updates_per_batch: int, rank: int, world_size: int) -> list[RowBatch]:
        """This rank's rows of each update."""
        num_updates = self.plan.updates_of(self.number, updates_per_batch)
        return rank_parts(self.plan[self.number], rank, world_size, num_updates)


@dataclass(kw_only=True)
class Loader:
    """Batches of `dataset` for one rank, loaded by `threads` threads up to `prefetch` batches ahead."""

    dataset: Dataset
    rules: CaptionRules
    seed: int
    rank: int
    world_size: int
    batch_size: int
    """Rows per batch for buckets without a batch size."""
    threads: int
    prefetch: int
    latents: EncodingCache[Encoded]
    """Images whose latents are in it are not read."""
    references: ReferenceReader | None = None
    """Reads reference images; None: rows have none, or only the images are wanted."""
    texts: ConditioningCache | None = None
    """With `references`: those whose latents and captions are cached are not read; None: captions do not
    count."""
    images: ImageSource = field(default_factory=ImageSource)
    updates_per_batch: int = 1
    """Updates that each global batch is split into."""

    def __post_init__(self) -> None:
        self._plans = {0: self.dataset.plan(self.batch_size, self.seed, 0)}

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        # Only fractional repeats and batches by cost make epochs of different lengths.
        plan = next(iter(self._plans.values()))
        return len(plan if self.dataset.batching.is_steady else self._plan(epoch))

    def _plan(self, epoch: int) -> EpochPlan:
        plans = self._plans
        if epoch not in plans:
            # Two are in use: for the epoch in training, and for the one that another thread prefetches.
            plans = dict(list(plans.items())[-1:])
            plans[epoch] = self.dataset.plan(self.batch_size, self.seed, epoch)
            self._plans = plans
        return plans[epoch]

    def batches(self, epoch: int, start: int = 0) -> Iterator[SampleBatch]:
        """Batches of `epoch` in order, from number `start`."""
        return self._read((epoch, number) for number in range(start, self.num_batches(epoch)))

    def endless(
        self, epoch: int, start: int = 0, is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[SampleBatch]:
        """Batches from number `start` of `epoch`, epoch after epoch, prefetched across their ends.

        Ends if `is_stopped` returns True while the next batch is awaited.

        Raises:
            DataError: no row can be trained.
        """
        # With fractional repeats a single epoch may be empty.
        if not (self.dataset.row_buckets != LEFT_OUT).any():
            raise DataError(f"{self.dataset.path}: {self.dataset.why_empty}")
        return in_background(self._read(self._numbers(epoch, start)), is_stopped)

    def _numbers(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        while True:
            for number in range(start, self.num_batches(epoch)):
                yield epoch, number
            epoch, start = epoch + 1, 0

    def _read(self, numbers: Iterator[tuple[int, int]]) -> Generator[SampleBatch]:
        """The batches with these (epoch, number): requested early from stores, then decoded."""
        started: deque[_PendingBatch] = deque()
        decoding: deque[_PendingBatch] = deque()
        ahead = self.prefetch + min(ROWS_AHEAD, len(self.dataset.metadata)) // self.batch_size
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            try:
                while True:
                    while len(started) <= ahead and (at := next(numbers, None)) is not None:
                        started.append(self._start(pool, _PendingBatch(self._plan(at[0]), *at)))
                    while started and len(decoding) <= self.prefetch:
                        batch = started.popleft()
                        bucket = self.dataset.buckets[batch.bucket]
                        batch.samples.extend(pool.submit(self._load, row, bucket) for row in batch.rows)
                        decoding.append(batch)
                    if not decoding:
                        return
                    yield self._collect(decoding.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for batch in (*started, *decoding):
                    for row in batch.rows:
                        _cancel_fetch(row)

    def _start(self, pool: ThreadPoolExecutor, batch: _PendingBatch) -> _PendingBatch:
        bucket = self.dataset.buckets[batch.bucket]
        parts = batch.parts(self.updates_per_batch, self.rank, self.world_size)
        rows = np.concatenate([part.rows for part in parts]).tolist()
        showings = np.concatenate([part.showings for part in parts]).tolist()
        pairs = zip(rows, showings, strict=True)
        batch.rows.extend(pool.submit(self._start_row, row, showing, bucket) for row, showing in pairs)
        return batch

    def _start_row(self, index: int, showing: int, bucket: Bucket) -> _StartedRow | Skipped:
        data = self.dataset
        try:
            row = data.metadata.row(index)
        except DataError as error:
            return Skipped(int(data.metadata.lines[index]), "", str(error))
        source = data.source_of(row)
        # A video is read in blocks while it is decoded.
        if data.dummy_image or row.is_clip or not self.images.is_remote(row, source.folder):
            return _StartedRow(row, showing, None)
        try:
            needs_image = source.mask == "alpha" or not self.latents.has((index, bucket))
        except ImageError as error:
            return Skipped(row.line, shown(row.filename), str(error), row.dataset)
        return _StartedRow(row, showing, self.images.prefetch(row, source.folder) if needs_image else None)

    def _collect(self, batch: _PendingBatch) -> SampleBatch:
        bucket = self.dataset.buckets[batch.bucket]
        results = [future.result() for future in batch.samples]
        usable = iter([isinstance(result, Sample) for result in results])
        parts = batch.parts(self.updates_per_batch, self.rank, self.world_size)
        update_sizes = [sum(islice(usable, len(part.rows))) for part in parts]
        return SampleBatch(
            epoch=batch.epoch,
            index=batch.number,
            size=bucket.size,
            num_frames=bucket.num_frames,
            samples=[result for result in results if isinstance(result, Sample)],
            skipped=[result for result in results if isinstance(result, Skipped)],
            update_sizes=update_sizes,
            joins_next=batch.plan.joins_next(batch.number),
        )

    def _load(self, future: Future[_StartedRow | Skipped], bucket: Bucket) -> Sample | Skipped:
        started = future.result()
        if isinstance(started, Skipped):
            return started
        row = started.row
        try:
            (latents,) = self.latents.get([(row.index, bucket)])
            is_cached = latents is not None or self.latents.has((row.index, bucket))
            pixels, mask = self._media(started, bucket, needs_pixels=not is_cached)
            caption = vary(row, started.showing, self.rules, self.seed)
            references = self._references(row, caption)
        except ImageError as error:
            return Skipped(row.line, shown(row.filename), str(error), row.dataset)
        finally:
            if started.fetch:
                started.fetch.cancel()
        return Sample(
            row=row.index,
            line=row.line,
            filename=row.filename,
            caption=caption,
            loss_weight=row.loss_weight * self.dataset.source_of(row).loss_weight,
            pixels=pixels,
            mask=mask,
            dataset=row.dataset,
            latents=latents,
            showing=started.showing,
            num_references=len(row.references) if self.references else 0,
            references=references,
        )

    def _references(self, row: Row, caption: str) -> tuple[NDArray[np.uint8], ...]:
        """The reference images of `row`; none if all that is made of them is cached."""
        if not self.references or not row.references:
            return ()
        images = [Reference(row.index, number) for number in range(len(row.references))]
        is_cached = all(self.latents.has(image) for image in images)
        is_cached &= self.texts is None or self.texts.has(prompt_of(row, caption))
        return () if is_cached else self.references.read(row)

    def _media(
        self, started: _StartedRow, bucket: Bucket, *, needs_pixels: bool
    ) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
        """The pixels if needed, and the mask if the dataset has any. A video has no alpha channel."""
        data, row = self.dataset, started.row
        source = data.source_of(row)
        frames = (bucket.num_frames,) if data.clips else ()
        if data.dummy_image:
            shape = (*frames, bucket.height, bucket.width, 3)
            return np.zeros(shape, np.uint8) if needs_pixels else None, None
        content = pixels = mask = None
        if not row.is_clip and (needs_pixels or source.mask == "alpha"):
            content = self.images.get(row, source.folder, started.fetch)
        if needs_pixels and data.clips and row.is_clip:
            clip = Clip(row.start_s, data.clips.fps)
            pixels = load_clip(self.images.open_video(row, source.folder), clip, bucket, data.max_megapixels)
        elif needs_pixels and content is not None:
            pixels = load_image(content, bucket.size, data.background, data.max_megapixels)
            pixels = pixels.reshape(*frames, *pixels.shape)
        if source.mask == "folder" or (source.mask == "alpha" and not row.is_clip):
            mask = load_mask(source, row, content, bucket.size, data.max_megapixels)
        return pixels, mask


def _cancel_fetch(future: Future[_StartedRow | Skipped]) -> None:
    """Cancel the download of a row's image, which may wait for a store that is down."""
    if future.done() and not future.cancelled() and not future.exception():
        started = future.result()
        if isinstance(started, _StartedRow) and started.fetch:
            started.fetch.cancel()
