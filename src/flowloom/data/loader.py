"""The rows of a JSONL as batches of captions and pixels, read ahead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import requests
from numpy.typing import NDArray

from flowloom.data.buckets import LEFT_OUT, assign, make_buckets
from flowloom.data.captions import CaptionRules, vary
from flowloom.data.images import load_image
from flowloom.data.metadata import Metadata, Row, check_skipped, read_metadata
from flowloom.data.order import EpochPlan, plan_epoch, rank_rows
from flowloom.errors import ImageError
from flowloom.parts.sources.http import fetch_image
from flowloom.parts.sources.local import find_image
from flowloom.spec.run import RunConfig

Size = tuple[int, int]


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


@dataclass(frozen=True)
class Skipped:
    """A row that could not be used."""

    line: int
    filename: str
    reason: str


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


@dataclass(frozen=True)
class DataSet:
    """Rows with their buckets; `row_buckets` is LEFT_OUT for rows that this part does not train."""

    metadata: Metadata
    sizes: list[Size]
    row_buckets: NDArray[np.int64]
    folder: Path
    background: tuple[int, int, int]
    max_megapixels: float
    skipped_limit: float
    dummy_image: bool
    held_out: NDArray[np.bool_]

    @classmethod
    def from_config(cls, config: RunConfig) -> DataSet:
        """The data set that `dataloader` names.

        Raises:
            DataError: the JSONL cannot be read, or too many of its rows cannot be used.
        """
        data, limits = config.dataloader, config.limits
        metadata = read_metadata(Path(data.jsonl_metadata_path))
        red, green, blue = bytes.fromhex(limits.background[1:])
        sizes, row_buckets = _place(metadata, config)
        dataset = cls(
            metadata=metadata,
            sizes=sizes,
            row_buckets=row_buckets,
            folder=Path(data.image_folder_path),
            background=(red, green, blue),
            max_megapixels=limits.max_megapixels,
            skipped_limit=limits.skipped_percentage,
            dummy_image=data.dummy_image,
            held_out=_held_out(metadata, config.validation.share),
        )
        dataset.check_skipped({})
        return dataset

    @property
    def path(self) -> Path:
        """The JSONL file."""
        return self.metadata.path

    @property
    def training(self) -> DataSet:
        """The rows that are trained."""
        return replace(self, row_buckets=np.where(self.held_out, LEFT_OUT, self.row_buckets))

    def validation(self, max_rows: int) -> DataSet:
        """At most `max_rows` of the rows that are held out."""
        chosen = np.flatnonzero(self.held_out & (self.row_buckets != LEFT_OUT))[:max_rows]
        mine = np.zeros(len(self.metadata), dtype=bool)
        mine[chosen] = True
        return replace(self, row_buckets=np.where(mine, self.row_buckets, LEFT_OUT))

    def check_skipped(self, skipped: dict[str, str]) -> None:
        """Stop when the unusable lines and the `skipped` rows are too large a share of the file.

        Raises:
            DataError: with the first of them.
        """
        lines = {f"{self.path}:{problem.line}": problem.reason for problem in self.metadata.problems}
        check_skipped(self.path, lines | skipped, len(self.metadata) + len(lines), self.skipped_limit)

    def summary(self) -> dict[str, Any]:
        """What a checkpoint says of the data it was trained on."""
        used = self.row_buckets[self.row_buckets != LEFT_OUT]
        counts = np.bincount(used, minlength=len(self.sizes))
        buckets = {f"{w}x{h}": int(n) for (w, h), n in zip(self.sizes, counts, strict=True) if n}
        return {
            "file": self.path.name,
            "rows": len(used),
            "left_out": len(self.metadata) - len(used),
            "unusable": len(self.metadata.problems),
            "buckets": buckets,
        }


def _place(metadata: Metadata, config: RunConfig) -> tuple[list[Size], NDArray[np.int64]]:
    """All bucket sizes, and each row's; with several base resolutions each row draws one."""
    data = config.dataloader
    draw = np.random.default_rng([config.training.master_seed & 0xFFFFFFFF, 1])
    drawn = draw.integers(len(data.base_resolution), size=len(metadata))
    sizes: list[Size] = []
    placed = np.full(len(metadata), LEFT_OUT)
    for i, base in enumerate(data.base_resolution):
        buckets = make_buckets(base, data.resolution_step, data.ratio_cutoff)
        mine = drawn == i
        found = assign(metadata.widths[mine], metadata.heights[mine], buckets, data.ratio_cutoff)
        placed[mine] = np.where(found == LEFT_OUT, LEFT_OUT, found + len(sizes))
        sizes += buckets
    return sizes, placed


def _held_out(metadata: Metadata, share: float) -> NDArray[np.bool_]:
    """Whether each row is kept for validation: by its file name, so that rows added later change nothing."""
    if not share:
        return np.zeros(len(metadata), dtype=bool)
    digests = (
        hashlib.blake2b(metadata.row(i).filename.encode(), digest_size=4).digest()
        for i in range(len(metadata))
    )
    return np.array([int.from_bytes(digest) < share * 2**32 for digest in digests])


@dataclass(kw_only=True)
class Loader:
    """Batches of `dataset` for one rank, read by `threads` threads up to `prefetch` batches ahead."""

    dataset: DataSet
    rules: CaptionRules
    seed: int
    rank: int
    world_size: int
    batch_size: int
    threads: int
    prefetch: int
    needs_pixels: Callable[[int, Size], bool]
    """Whether the image of a row is wanted for a bucket: not where its latents are at hand."""

    def __post_init__(self) -> None:
        self._session = requests.Session()
        # All epochs cut the buckets alike: one plan tells how many batches each has.
        self._num_batches = len(self._plan(0))

    def num_batches(self, epoch: int) -> int:  # noqa: ARG002
        """Batches of an epoch."""
        return self._num_batches

    def _plan(self, epoch: int) -> EpochPlan:
        return plan_epoch(self.dataset.row_buckets, self.batch_size, self.seed, epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[LoadedBatch]:
        """The batches of `epoch` from number `start` on, in order."""
        plan = self._plan(epoch)
        waiting: deque[tuple[int, list[Future[Sample | Skipped]]]] = deque()
        numbers = iter(range(start, len(plan)))
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            try:
                while True:
                    while len(waiting) <= self.prefetch and (number := next(numbers, None)) is not None:
                        waiting.append((number, self._submit(pool, plan, epoch, number)))
                    if not waiting:
                        return
                    number, futures = waiting.popleft()
                    yield self._collect(plan, epoch, number, futures)
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
        row = self.dataset.metadata.row(index)
        try:
            pixels = self._pixels(row, size) if self.needs_pixels(index, size) else None
        except ImageError as error:
            return Skipped(row.line, row.filename, str(error))
        caption = vary(row, epoch, self.rules, self.seed)
        return Sample(index, row.line, row.filename, caption, row.loss_weight, pixels)

    def _pixels(self, row: Row, size: Size) -> NDArray[np.uint8]:
        data = self.dataset
        if data.dummy_image:
            return np.zeros((size[1], size[0], 3), np.uint8)
        source = (
            fetch_image(row.filename, self._session)
            if row.is_url_based
            else find_image(data.folder, row.filename)
        )
        return load_image(source, size, data.background, data.max_megapixels)
