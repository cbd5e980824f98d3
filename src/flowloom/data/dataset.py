"""The rows of one or several JSONLs, each with its bucket, its folder and its repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowloom.config.data_sections import DatasetSection
from flowloom.config.run import RunConfig
from flowloom.data.buckets import LEFT_OUT, Bucket, Size, assign, assign_frames, make_buckets
from flowloom.data.clip_rules import ANY_CLIP, ClipRules, check_images_only, clip_rules
from flowloom.data.metadata import JoinedMetadata, Row, Rows, check_skipped, read_metadata
from flowloom.data.order import BatchingOptions, EpochPlan, plan_epoch
from flowloom.models.family import family_for, image_tokens

__all__ = [
    "Bucket",
    "ClipRules",
    "Dataset",
    "DatasetSource",
    "Size",
    "clip_rules",
    "dataset_sources",
    "repeats_of",
]

CHARS_PER_TOKEN = 3.5
"""Average of captions with T5's tokenizer: slightly more for English prose, slightly less for tags."""


@dataclass(frozen=True)
class DatasetSource:
    """A JSONL with its images, and the settings of their training."""

    path: Path
    """The JSONL; for a folder of images, the JSONL with its current rows."""
    folder: str
    """Folder that file names are relative to, or a URL such as s3://bucket/set."""
    base_resolution: Sequence[int]
    batch_sizes: Sequence[int]
    """For each base resolution; 0: the loader's batch size."""
    resolution_step: int
    ratio_cutoff: float
    repeats: float | None = None
    weight: float | None = None
    loss_weight: float = 1.0
    is_regularisation: bool = False
    mask: Literal["none", "alpha", "folder"] = "none"
    mask_folder: Path = Path()
    unmasked_weight: float = 0.0
    source: Path | None = None
    """The folder of images with captions that the rows were read from; None if the JSONL was given."""
    left_out: Mapping[str, int] = field(default_factory=dict[str, int])
    """Number of images of `source` without a row, by reason."""


def dataset_sources(config: RunConfig) -> list[DatasetSource]:
    """The datasets that `config` names, `dataloader`'s first."""
    data = config.dataloader
    sizes = dict(zip(data.base_resolution, config.batching.sizes, strict=False))
    first = DatasetSource(
        path=Path(data.jsonl_metadata_path),
        folder=data.image_folder_path,
        base_resolution=data.base_resolution,
        batch_sizes=[sizes.get(base, 0) for base in data.base_resolution],
        resolution_step=data.resolution_step,
        ratio_cutoff=data.ratio_cutoff,
        mask=data.mask,
        mask_folder=Path(data.mask_folder_path),
        unmasked_weight=data.unmasked_weight,
    )
    others = [_additional_source(section, first, sizes) for section in config.datasets]
    return others if others and not data.jsonl_metadata_path else [first, *others]


def _additional_source(section: DatasetSection, first: DatasetSource, sizes: dict[int, int]) -> DatasetSource:
    resolutions = section.base_resolution or first.base_resolution
    return DatasetSource(
        path=Path(section.jsonl_metadata_path),
        folder=first.folder if section.image_folder_path is None else section.image_folder_path,
        base_resolution=resolutions,
        batch_sizes=[section.batch_size or sizes.get(base, 0) for base in resolutions],
        resolution_step=section.resolution_step or first.resolution_step,
        ratio_cutoff=section.ratio_cutoff or first.ratio_cutoff,
        repeats=section.repeats,
        weight=section.weight,
        loss_weight=section.loss_weight,
        is_regularisation=section.is_regularisation,
        mask=section.mask,
        mask_folder=Path(section.mask_folder_path),
        unmasked_weight=section.unmasked_weight,
    )


@dataclass(frozen=True)
class Dataset:
    """Rows with their buckets, or the part to train or validate: other rows have the bucket LEFT_OUT."""

    sources: list[DatasetSource]
    metadata: Rows
    buckets: list[Bucket]
    batch_sizes: NDArray[np.int64]
    """For each bucket; 0: the loader's batch size."""
    row_buckets: NDArray[np.int64]
    batching: BatchingOptions
    background: tuple[int, int, int]
    max_megapixels: float
    skipped_limit: float
    dummy_image: bool
    held_out: NDArray[np.bool_]
    clips: ClipRules | None = None
    """None: a dataset of images for a model that trains on images only."""

    @classmethod
    def from_sources(
        cls, sources: list[DatasetSource], config: RunConfig, *, is_checked: bool = False
    ) -> Dataset:
        """`sources` as one dataset; `flowloom.datasets.load` resolves folders of images first.

        Args:
            is_checked: the rows are only checked, so that videos are read for every model.

        Raises:
            DataError: a JSONL cannot be read, too many rows cannot be used, or it has videos and the model
                trains on images only.
            ConfigError: the model does not take this number of frames.
        """
        limits, clips = config.limits, clip_rules(config) or (ANY_CLIP if is_checked else None)
        parts = [read_metadata(source.path) for source in sources]
        if clips is None:
            for part in parts:
                check_images_only(part, family_for(config.model).title)
        metadata = parts[0] if len(parts) == 1 else JoinedMetadata(parts)
        red, green, blue = bytes.fromhex(limits.background[1:])
        seed = config.training.master_seed
        buckets, batch_sizes, row_buckets = _assign_buckets(sources, parts, seed, clips)
        held_out = _held_out(metadata, config.validation.share)
        counts = [
            int(np.count_nonzero(is_used))
            for is_used in _by_source((row_buckets != LEFT_OUT) & ~held_out, [len(part) for part in parts])
        ]
        repeats = repeats_of(sources, counts)
        dataset = cls(
            sources=sources,
            metadata=metadata,
            buckets=buckets,
            batch_sizes=batch_sizes,
            row_buckets=row_buckets,
            batching=BatchingOptions(
                repeats=np.repeat(repeats, [len(part) for part in parts]) if set(repeats) != {1.0} else None,
                row_costs=_costs(metadata, buckets, row_buckets, config),
                max_cost=config.batching.batch_tokens or 0,
                packs=config.batching.pack_aspect_ratios,
            ),
            background=(red, green, blue),
            max_megapixels=limits.max_megapixels,
            skipped_limit=limits.skipped_percentage,
            dummy_image=config.dataloader.dummy_image,
            held_out=held_out,
            clips=clips,
        )
        dataset.check_skipped({})
        return dataset

    @property
    def path(self) -> Path:
        """The JSONL file, the first of several."""
        return self.sources[0].path

    @property
    def folder(self) -> str:
        """The folder of the images, the first of several."""
        return self.sources[0].folder

    def source_of(self, row: Row) -> DatasetSource:
        """The source that `row` belongs to."""
        return self.sources[row.dataset]

    def plan(self, batch_size: int, seed: int, epoch: int) -> EpochPlan:
        """The batches of `epoch`: `batch_size` rows, unless the bucket or `batch_tokens` sets the size."""
        sizes = np.where(self.batch_sizes > 0, self.batch_sizes, batch_size)
        return plan_epoch(self.row_buckets, sizes, seed, epoch, self.batching)

    @property
    def training(self) -> Dataset:
        """The part that is trained."""
        return replace(self, row_buckets=np.where(self.held_out, LEFT_OUT, self.row_buckets))

    @property
    def has_weight(self) -> bool:
        """True if any row has a loss weight above 0."""
        rows = self.metadata
        lengths = [len(part) for part in rows.parts] if isinstance(rows, JoinedMetadata) else [len(rows)]
        weights = _by_source(rows.loss_weights * (self.row_buckets != LEFT_OUT), lengths)
        return any(
            source.loss_weight * rows.max(initial=0) > 0
            for source, rows in zip(self.sources, weights, strict=True)
        )

    @property
    def why_empty(self) -> str:
        """Reason why no row is trained, with a hint; for an empty dataset."""
        num_rows, num_held_out = len(self.metadata), int(np.count_nonzero(self.held_out))
        cutoff = max(source.ratio_cutoff for source in self.sources)
        shapes = f"wider or taller than {cutoff:g} to 1 (ratio_cutoff)"
        if self.clips:
            shapes += f" or clips of fewer than {self.clips.lengths[0]} frames (video.num_frames)"
        reasons = [
            f"{num_rows - num_held_out:,} are {shapes}",
            f"{num_held_out:,} are held out (validation.share)",
        ]
        listed = ", ".join(reasons[: 1 + bool(num_held_out)])
        return f"no row is left to train on: of {num_rows:,}, {listed}. Add images, or change these values."

    def validation(self, max_rows: int) -> Dataset:
        """The part that is held out, at most `max_rows` rows, each once."""
        chosen = np.flatnonzero(self.held_out & (self.row_buckets != LEFT_OUT))[:max_rows]
        is_chosen = np.zeros(len(self.metadata), dtype=bool)
        is_chosen[chosen] = True
        once = replace(self.batching, repeats=None)
        return replace(self, row_buckets=np.where(is_chosen, self.row_buckets, LEFT_OUT), batching=once)

    def check_skipped(self, skipped: dict[str, str]) -> None:
        """Raise if the unusable lines and the `skipped` rows exceed the limit.

        Raises:
            DataError: with the first of them.
        """
        lines = {
            f"{self.sources[problem.dataset].path}:{problem.line}": problem.reason
            for problem in self.metadata.problems
        }
        check_skipped(self.path, lines | skipped, len(self.metadata) + len(lines), self.skipped_limit)

    def summary(self) -> dict[str, Any]:
        """Description of the training data for a checkpoint."""
        used = self.row_buckets[self.row_buckets != LEFT_OUT]
        counts = np.bincount(used, minlength=len(self.buckets))
        buckets: dict[str, int] = {}
        for bucket, n in zip(map(str, self.buckets), counts.tolist(), strict=True):
            if n:
                # Datasets with different batch sizes have separate buckets of one size.
                buckets[bucket] = buckets.get(bucket, 0) + n
        summary = {
            "file": self.path.name,
            "rows": len(used),
            "left_out": len(self.metadata) - len(used),
            "unusable": len(self.metadata.problems),
            "buckets": buckets,
        }
        files = [source.path.name for source in self.sources]
        return summary | ({"files": files} if len(files) > 1 else {})


def repeats_of(sources: Sequence[DatasetSource], counts: Sequence[int]) -> list[float]:
    """Repeats per epoch of the rows of each source, by `repeats`, `weight`, or as regularisation.

    Sources with weights have together as many samples as rows, in proportion to their weights.
    """
    weighted = [i for i, source in enumerate(sources) if source.weight and counts[i]]
    num_samples = sum(counts[i] for i in weighted)
    total = sum(sources[i].weight or 0.0 for i in weighted)
    repeats = [source.repeats or 1.0 for source in sources]
    for i in weighted:
        repeats[i] = (sources[i].weight or 0.0) / total * num_samples / counts[i]
    balanced = {
        i
        for i, source in enumerate(sources)
        if source.is_regularisation and not source.weight and not source.repeats and counts[i]
    }
    if balanced:
        others = sum(r * n for i, (r, n) in enumerate(zip(repeats, counts, strict=True)) if i not in balanced)
        for i in balanced:
            repeats[i] = others / sum(counts[j] for j in balanced)
    return repeats


def _by_source(rows: NDArray[Any], lengths: Sequence[int]) -> Iterator[NDArray[Any]]:
    yield from np.split(rows, np.cumsum(lengths)[:-1])


def _assign_buckets(
    sources: Sequence[DatasetSource], parts: Sequence[Rows], seed: int, clips: ClipRules | None = None
) -> tuple[list[Bucket], NDArray[np.int64], NDArray[np.int64]]:
    """All buckets, their batch sizes, and the bucket of each row.

    With several base resolutions, one is drawn for each row. Sources share buckets of the same size, number
    of frames and batch size.
    """
    lengths = sorted({1, *(clips.lengths if clips else ())})
    known: list[tuple[Bucket, int]] = []
    row_buckets: list[NDArray[np.int64]] = []
    for i, (source, part) in enumerate(zip(sources, parts, strict=True)):
        draw = np.random.default_rng([seed & 0xFFFFFFFF, 1, *([i] if i else [])])
        drawn = draw.integers(len(source.base_resolution), size=len(part))
        frames = assign_frames(part.num_frames, part.fps, clips.lengths, clips.fps) if clips else None
        assigned = np.full(len(part), LEFT_OUT)
        earlier = {key: number for number, key in enumerate(known)} if i else {}
        for j, (base, batch_size) in enumerate(zip(source.base_resolution, source.batch_sizes, strict=True)):
            sizes = make_buckets(base, source.resolution_step, source.ratio_cutoff)
            chosen = drawn == j
            nearest = assign(part.widths[chosen], part.heights[chosen], sizes, source.ratio_cutoff)
            for length in lengths:
                keys = [(Bucket(*size, length), batch_size) for size in sizes]
                added = [key for key in keys if key not in earlier]
                new = {key: len(known) + number for number, key in enumerate(added)}
                known += added
                numbers = np.array([*(earlier.get(key, new.get(key)) for key in keys), LEFT_OUT])
                has_length = True if frames is None else frames[chosen] == length
                assigned[chosen] = np.where(has_length, numbers[nearest], assigned[chosen])
        row_buckets.append(assigned)
    joined = np.concatenate(row_buckets) if len(row_buckets) > 1 else row_buckets[0]
    return [bucket for bucket, _ in known], np.array([size for _, size in known]), joined


def _costs(
    metadata: Rows, buckets: Sequence[Bucket], row_buckets: NDArray[np.int64], config: RunConfig
) -> NDArray[np.int64] | None:
    """Approximate tokens of each row, with its caption; None unless `batch_tokens` sets the batch sizes."""
    if not config.batching.batch_tokens:
        return None
    family = family_for(config.model)
    rules = clip_rules(config)
    planes = [rules.planes(bucket.num_frames) if rules else 1 for bucket in buckets]
    of_bucket = [n * image_tokens(family, b.width * b.height) for n, b in zip(planes, buckets, strict=True)]
    tokens = np.array(of_bucket)[row_buckets]
    if family.defaults.reference_size:
        references = metadata.num_references.astype(np.int64)
        tokens = tokens + references * image_tokens(family, config.dataloader.reference_pixels)
    text_tokens = (metadata.caption_chars / CHARS_PER_TOKEN).astype(np.int64) + 2
    return tokens + np.minimum(text_tokens, config.model.max_text_tokens)


def _held_out(metadata: Rows, share: float) -> NDArray[np.bool_]:
    """True for each row held out for validation: chosen by file name, so that added rows change nothing."""
    if not share:
        return np.zeros(len(metadata), dtype=bool)
    digests = (
        hashlib.blake2b(metadata.row(i).filename.encode(), digest_size=4).digest()
        for i in range(len(metadata))
    )
    return np.array([int.from_bytes(digest) < share * 2**32 for digest in digests])
