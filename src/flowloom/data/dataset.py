"""One JSONL or several as the rows of a run: each with its bucket, its folder, and how often it comes."""

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
from flowloom.data.buckets import LEFT_OUT, assign, make_buckets
from flowloom.data.metadata import JoinedMetadata, Row, Rows, check_skipped, read_metadata
from flowloom.data.order import BatchingOptions, EpochPlan, plan_epoch
from flowloom.datasets.build.fresh import folder_rows

Size = tuple[int, int]

PIXELS_PER_TOKEN = 16 * 16
CHARS_PER_TOKEN = 3.5
"""Of a caption, for T5's tokenizer: English prose has a little more, tags a little less."""


@dataclass(frozen=True)
class DatasetSource:
    """One JSONL with its pictures, and how they are trained."""

    path: Path
    """The JSONL; of a folder of images, the one that holds its rows as they are now."""
    folder: str
    """Where file names begin: a folder, or an address such as s3://bucket/set."""
    base_resolution: Sequence[int]
    batch_sizes: Sequence[int]
    """One for each base resolution; 0: the loader's own."""
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
    """The folder of images with captions that the rows were read from; None: the JSONL was given."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Images of `source` that did not become a row, by reason."""


def dataset_sources(config: RunConfig) -> list[DatasetSource]:
    """The data sets that `config` names, `dataloader`'s first."""
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
    others = [_other_set(section, first, sizes) for section in config.datasets]
    return others if others and not data.jsonl_metadata_path else [first, *others]


def _other_set(section: DatasetSection, first: DatasetSource, sizes: dict[int, int]) -> DatasetSource:
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


def _with_rows(one: DatasetSource) -> DatasetSource:
    """`one` with a JSONL, where it is a folder of images with captions."""
    if not one.path.is_dir():
        return one
    rows = folder_rows(one.path)
    return replace(one, path=rows.path, source=one.path, left_out=rows.left_out)


@dataclass(frozen=True)
class Dataset:
    """Rows with their buckets; `row_buckets` is LEFT_OUT for rows that this part does not train."""

    sources: list[DatasetSource]
    metadata: Rows
    sizes: list[Size]
    batch_sizes: NDArray[np.int64]
    """Of each bucket; 0: the loader's own."""
    row_buckets: NDArray[np.int64]
    batching: BatchingOptions
    background: tuple[int, int, int]
    max_megapixels: float
    skipped_limit: float
    dummy_image: bool
    held_out: NDArray[np.bool_]

    @classmethod
    def from_config(cls, config: RunConfig) -> Dataset:
        """The data sets that `dataloader` and `datasets` name, as one.

        Raises:
            DataError: a JSONL cannot be read, or too many rows cannot be used.
        """
        limits, sources = config.limits, [_with_rows(one) for one in dataset_sources(config)]
        parts = [read_metadata(one.path) for one in sources]
        metadata = parts[0] if len(parts) == 1 else JoinedMetadata(parts)
        red, green, blue = bytes.fromhex(limits.background[1:])
        sizes, batch_sizes, row_buckets = _place(sources, parts, config.training.master_seed)
        held_out = _held_out(metadata, config.validation.share)
        counts = [
            int(np.count_nonzero(mine))
            for mine in _by_set((row_buckets != LEFT_OUT) & ~held_out, [len(part) for part in parts])
        ]
        repeats = repeats_of(sources, counts)
        dataset = cls(
            sources=sources,
            metadata=metadata,
            sizes=sizes,
            batch_sizes=batch_sizes,
            row_buckets=row_buckets,
            batching=BatchingOptions(
                repeats=np.repeat(repeats, [len(part) for part in parts]) if set(repeats) != {1.0} else None,
                row_costs=_costs(metadata, sizes, row_buckets, config),
                max_cost=config.batching.batch_tokens or 0,
                packs=config.batching.pack_aspect_ratios,
            ),
            background=(red, green, blue),
            max_megapixels=limits.max_megapixels,
            skipped_limit=limits.skipped_percentage,
            dummy_image=config.dataloader.dummy_image,
            held_out=held_out,
        )
        dataset.check_skipped({})
        return dataset

    @property
    def path(self) -> Path:
        """The JSONL file, the first of several."""
        return self.sources[0].path

    @property
    def folder(self) -> str:
        """The folder of the pictures, the first of several."""
        return self.sources[0].folder

    def source_of(self, row: Row) -> DatasetSource:
        """The data set that `row` belongs to."""
        return self.sources[row.dataset]

    def plan(self, batch_size: int, seed: int, epoch: int) -> EpochPlan:
        """The batches of `epoch`; of `batch_size` rows where neither bucket nor `batch_tokens` says else."""
        sizes = np.where(self.batch_sizes > 0, self.batch_sizes, batch_size)
        return plan_epoch(self.row_buckets, sizes, seed, epoch, self.batching)

    @property
    def training(self) -> Dataset:
        """The rows that are trained."""
        return replace(self, row_buckets=np.where(self.held_out, LEFT_OUT, self.row_buckets))

    @property
    def has_weight(self) -> bool:
        """Whether the loss of any of the rows counts."""
        rows = self.metadata
        lengths = [len(part) for part in rows.parts] if isinstance(rows, JoinedMetadata) else [len(rows)]
        weights = _by_set(rows.loss_weights * (self.row_buckets != LEFT_OUT), lengths)
        return any(
            one.loss_weight * mine.max(initial=0) > 0 for one, mine in zip(self.sources, weights, strict=True)
        )

    @property
    def why_empty(self) -> str:
        """Why no row is trained, and what to change; for datasets of which none is."""
        num_rows, num_held_out = len(self.metadata), int(np.count_nonzero(self.held_out))
        cutoff = max(one.ratio_cutoff for one in self.sources)
        reasons = [
            f"{num_rows - num_held_out:,} are wider or taller than {cutoff:g} to 1 (ratio_cutoff)",
            f"{num_held_out:,} are held out (validation.share)",
        ]
        told = ", ".join(reasons[: 1 + bool(num_held_out)])
        return f"no row is left to train on: of {num_rows:,}, {told}. Add images, or change these values."

    def validation(self, max_rows: int) -> Dataset:
        """At most `max_rows` of the rows that are held out, each once."""
        chosen = np.flatnonzero(self.held_out & (self.row_buckets != LEFT_OUT))[:max_rows]
        mine = np.zeros(len(self.metadata), dtype=bool)
        mine[chosen] = True
        once = replace(self.batching, repeats=None)
        return replace(self, row_buckets=np.where(mine, self.row_buckets, LEFT_OUT), batching=once)

    def check_skipped(self, skipped: dict[str, str]) -> None:
        """Stop when the unusable lines and the `skipped` rows are too large a share of the file.

        Raises:
            DataError: with the first of them.
        """
        lines = {
            f"{self.sources[problem.dataset].path}:{problem.line}": problem.reason
            for problem in self.metadata.problems
        }
        check_skipped(self.path, lines | skipped, len(self.metadata) + len(lines), self.skipped_limit)

    def summary(self) -> dict[str, Any]:
        """What a checkpoint says of the data it was trained on."""
        used = self.row_buckets[self.row_buckets != LEFT_OUT]
        counts = np.bincount(used, minlength=len(self.sizes))
        buckets: dict[str, int] = {}
        for (w, h), n in zip(self.sizes, counts.tolist(), strict=True):
            if n:
                # Sets of different batch sizes have buckets of their own.
                buckets[f"{w}x{h}"] = buckets.get(f"{w}x{h}", 0) + n
        told = {
            "file": self.path.name,
            "rows": len(used),
            "left_out": len(self.metadata) - len(used),
            "unusable": len(self.metadata.problems),
            "buckets": buckets,
        }
        return told | ({"files": [one.path.name for one in self.sources]} if len(self.sources) > 1 else {})


def repeats_of(sources: Sequence[DatasetSource], counts: Sequence[int]) -> list[float]:
    """How often a row of each set comes an epoch, by `repeats`, `weight`, or as regularisation.

    Sets with weights have together as many samples as rows, in the proportion of their weights.
    """
    weighted = [i for i, one in enumerate(sources) if one.weight and counts[i]]
    num_samples = sum(counts[i] for i in weighted)
    total = sum(sources[i].weight or 0.0 for i in weighted)
    repeats = [one.repeats or 1.0 for one in sources]
    for i in weighted:
        repeats[i] = (sources[i].weight or 0.0) / total * num_samples / counts[i]
    balanced = {
        i
        for i, one in enumerate(sources)
        if one.is_regularisation and not one.weight and not one.repeats and counts[i]
    }
    if balanced:
        others = sum(r * n for i, (r, n) in enumerate(zip(repeats, counts, strict=True)) if i not in balanced)
        for i in balanced:
            repeats[i] = others / sum(counts[j] for j in balanced)
    return repeats


def _by_set(rows: NDArray[Any], lengths: Sequence[int]) -> Iterator[NDArray[Any]]:
    yield from np.split(rows, np.cumsum(lengths)[:-1])


def _place(
    sources: Sequence[DatasetSource], parts: Sequence[Rows], seed: int
) -> tuple[list[Size], NDArray[np.int64], NDArray[np.int64]]:
    """All bucket sizes, their batch sizes, and each row's bucket.

    With several base resolutions each row draws one. Sets share the buckets that are alike.
    """
    sizes: list[Size] = []
    batch_sizes: list[int] = []
    placed: list[NDArray[np.int64]] = []
    for i, (one, part) in enumerate(zip(sources, parts, strict=True)):
        draw = np.random.default_rng([seed & 0xFFFFFFFF, 1, *([i] if i else [])])
        drawn = draw.integers(len(one.base_resolution), size=len(part))
        known = {key: number for number, key in enumerate(zip(sizes, batch_sizes, strict=True))} if i else {}
        mine = np.full(len(part), LEFT_OUT)
        for j, (base, batch_size) in enumerate(zip(one.base_resolution, one.batch_sizes, strict=True)):
            buckets = make_buckets(base, one.resolution_step, one.ratio_cutoff)
            numbers = []
            for size in buckets:
                number = known.get((size, batch_size), len(sizes))
                numbers.append(number)
                if number == len(sizes):
                    sizes.append(size)
                    batch_sizes.append(batch_size)
            chosen = drawn == j
            found = assign(part.widths[chosen], part.heights[chosen], buckets, one.ratio_cutoff)
            mine[chosen] = np.array([*numbers, LEFT_OUT])[found]
        placed.append(mine)
    return sizes, np.array(batch_sizes), np.concatenate(placed) if len(placed) > 1 else placed[0]


def _costs(
    metadata: Rows, sizes: Sequence[Size], row_buckets: NDArray[np.int64], config: RunConfig
) -> NDArray[np.int64] | None:
    """About how many tokens each row is, with its caption; None where batches are not filled by tokens."""
    if not config.batching.batch_tokens:
        return None
    image_tokens = np.array([w * h // PIXELS_PER_TOKEN for w, h in sizes])[row_buckets]
    text_tokens = (metadata.caption_chars / CHARS_PER_TOKEN).astype(np.int64) + 2
    return image_tokens + np.minimum(text_tokens, config.model.t5_max_length)


def _held_out(metadata: Rows, share: float) -> NDArray[np.bool_]:
    """Whether each row is kept for validation: by its file name, so that rows added later change nothing."""
    if not share:
        return np.zeros(len(metadata), dtype=bool)
    digests = (
        hashlib.blake2b(metadata.row(i).filename.encode(), digest_size=4).digest()
        for i in range(len(metadata))
    )
    return np.array([int.from_bytes(digest) < share * 2**32 for digest in digests])
