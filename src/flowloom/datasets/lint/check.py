"""`flowloom dataset lint`: check every row and image as training reads them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowloom.config.run import RunConfig
from flowloom.data.buckets import LEFT_OUT
from flowloom.data.loader import Dataset
from flowloom.data.metadata import Row
from flowloom.datasets.lint.captions import CaptionCounter, text_problem
from flowloom.datasets.lint.clips import clip_findings
from flowloom.datasets.lint.images import ImageCheck, ImageChecker
from flowloom.datasets.lint.near_duplicates import MAX_BITS, group_near_duplicates
from flowloom.datasets.lint.report import BucketUse, Finding, Report
from flowloom.datasets.load import load_dataset
from flowloom.errors import DataError
from flowloom.models.tokenizer import load_tokenizer
from flowloom.storage.base import StorageSection


@dataclass(frozen=True)
class LintOptions:
    """Options of a lint."""

    config: RunConfig
    """Defines the dataset, buckets, batch size and token limit."""
    tokenizer: Path | None = None
    """T5's tokenizer; None: tokens are not counted."""
    with_images: bool = True
    """False: only the JSONL is read."""
    with_urls: bool = False
    """Also download images from URLs."""
    upscale: float = 1.0
    """Upscaling by a larger factor is a finding."""
    near_bits: int = MAX_BITS
    """Bits of 128 in which near duplicates may differ; -1: no search."""
    threads: int = 4
    progress: Callable[[int], None] = field(default=lambda _: None)


@dataclass
class LintedDataset:
    """The rows of a JSONL, the checks of their images, and the report."""

    dataset: Dataset
    checks: list[ImageCheck]
    report: Report
    storage: StorageSection
    """Access to stores."""


def lint(options: LintOptions) -> LintedDataset:
    """Check the dataset of `options.config`.

    Raises:
        DataError: the JSONL is missing or has no usable row.
        WeightsError: the tokenizer cannot be loaded.
    """
    started = time.monotonic()
    dataset = open_dataset(options.config)
    tokenize = load_tokenizer(options.tokenizer)[0] if options.tokenizer else None
    counter = CaptionCounter(tokenize)
    checks = _check_images(dataset, options)
    findings = [
        Finding("broken_row", problem.line, "", problem.reason) for problem in dataset.metadata.problems
    ]
    for index, check in enumerate(checks):
        row = dataset.metadata.row(index)
        findings += _text_findings(row, counter.add(row), options.config.model.max_text_tokens)
        findings += _image_findings(dataset, row, check, options)
    duplicates, num_crowded = _duplicates(dataset, checks, options.near_bits)
    findings += duplicates
    metadata, data = dataset.metadata, options.config.dataloader
    num_decoded = sum(check.is_decoded or bool(check.damaged or check.video) for check in checks)
    report = Report(
        path=str(dataset.path),
        images=str(dataset.folder),
        num_rows=len(metadata) + len(metadata.problems),
        num_usable=len(metadata),
        num_decoded=num_decoded,
        num_not_checked=sum(check == ImageCheck() for check in checks),
        batch_size=data.batch_size,
        resolutions=list(data.base_resolution),
        max_tokens=options.config.model.max_text_tokens,
        seconds=time.monotonic() - started,
        findings=findings,
        buckets=bucket_uses(dataset, data.batch_size),
        captions=counter.stats(),
        num_crowded=num_crowded,
    )
    return LintedDataset(dataset, checks, report, options.config.storage)


def open_dataset(config: RunConfig) -> Dataset:
    """The dataset of `config`, even if many of its rows are broken.

    Raises:
        DataError: the JSONL is missing or has no usable row.
    """
    limits = config.limits.model_copy(update={"skipped_percentage": 1.0})
    return load_dataset(config.model_copy(update={"limits": limits}), is_checked=True)


def _check_images(dataset: Dataset, options: LintOptions) -> list[ImageCheck]:
    if not options.with_images:
        return [ImageCheck()] * len(dataset.metadata)
    if "://" not in dataset.folder and not Path(dataset.folder).is_dir():
        raise DataError(f"{dataset.folder}: no such folder. Set the folder of the images with --images.")
    checker = ImageChecker(dataset, options.with_urls, options.config.storage)
    return list(checker.check_all(options.threads, options.progress))


def _text_findings(row: Row, num_tokens: int | None, max_tokens: int) -> Iterator[Finding]:
    if not row.caption.strip():
        yield Finding("empty_caption", row.line, row.filename, "the caption is empty")
    if num_tokens is not None and num_tokens > max_tokens:
        message = f"{num_tokens} tokens; training truncates the last {num_tokens - max_tokens}"
        yield Finding("long_caption", row.line, row.filename, message, amount=num_tokens)
    problem = text_problem(row.caption) or text_problem(row.filename)
    if problem:
        yield Finding("encoding", row.line, row.filename, problem)
    if not row.loss_weight:
        yield Finding("no_weight", row.line, row.filename, "loss_weight is 0")


def _image_findings(dataset: Dataset, row: Row, check: ImageCheck, options: LintOptions) -> Iterator[Finding]:
    def finding(kind: str, message: str, amount: float | None = None) -> Finding:
        return Finding(kind, row.line, row.filename, message, amount=amount)

    if check.missing:
        yield finding("missing_file", check.missing)
    if check.damaged:
        yield finding("damaged_file", check.damaged)
    recorded = (row.width, row.height)
    width, height = check.size or recorded
    if (width, height) != recorded:
        yield finding(
            "wrong_size", f"recorded as {row.width} x {row.height}, but the image is {width} x {height}"
        )
    for kind, message in clip_findings(row, check.video) if check.video else ():
        yield finding(kind, message)
    bucket = int(dataset.row_buckets[row.index])
    if bucket == LEFT_OUT:
        yield finding(*_left_out(dataset, row, options.config.dataloader.ratio_cutoff))
        return
    size = dataset.buckets[bucket].size
    scale = max(size[0] / width, size[1] / height)
    if scale > options.upscale:
        yield finding(
            "small", f"{width} x {height} is upscaled {scale:.2f} times to {size[0]} x {size[1]}", scale
        )


def _left_out(dataset: Dataset, row: Row, cutoff: float) -> tuple[str, str, float]:
    """Kind, message and amount of the finding about a row without a bucket."""
    ratio = max(row.width / row.height, row.height / row.width)
    if row.is_clip and ratio < cutoff and dataset.clips:
        at = f" at {row.fps:g} frames/s" if row.fps else ""
        least = f"{dataset.clips.lengths[0]} at {dataset.clips.fps:g} frames/s"
        return "short_clip", f"{row.num_frames} frames{at}; the least is {least}", row.num_frames
    message = f"{row.width} x {row.height} has an aspect ratio of {ratio:.2f}; the limit is {cutoff:g}"
    return "left_out", message, ratio


def _duplicates(dataset: Dataset, checks: list[ImageCheck], near_bits: int) -> tuple[list[Finding], int]:
    """Rows with the same file, the same bytes, or a similar image as another row; and the number of images
    that were not compared with all others."""
    findings: list[Finding] = []
    metadata = dataset.metadata
    decoded = [index for index, check in enumerate(checks) if check.is_decoded]
    same: dict[bytes, list[int]] = defaultdict(list)
    for index in decoded:
        same[checks[index].digest].append(index)
    for group, indices in enumerate(same.values()):
        findings += _same_bytes([metadata.row(index) for index in indices], group)
    if near_bits < 0:
        return findings, 0
    firsts = [indices[0] for indices in same.values()]
    labels, num_crowded = _similar(checks, firsts, near_bits)
    similar: dict[int, list[Row]] = defaultdict(list)
    for index, label in zip(firsts, labels, strict=True):
        similar[label].append(metadata.row(index))
    for label, rows in similar.items():
        for row in rows if len(rows) > 1 else []:
            others = ", ".join(str(other.line) for other in rows if other is not row)
            message = f"similar to line {others:.60}"
            findings.append(
                Finding("near_duplicate", row.line, row.filename, message, group=len(same) + label)
            )
    return findings, num_crowded


def _same_bytes(rows: list[Row], group: int) -> Iterator[Finding]:
    if len(rows) < 2:
        return
    names = {row.filename for row in rows}
    first = rows[0]
    if len(names) > 1:
        yield Finding("duplicate", first.line, first.filename, f"the first of {len(rows)}", group)
    for row in rows[1:]:
        if row.filename == first.filename:
            yield Finding(
                "repeated_row", row.line, row.filename, f"the same file as in line {first.line}", group
            )
        else:
            message = f"the same bytes as {first.filename} in line {first.line}"
            yield Finding("duplicate", row.line, row.filename, message, group)


def _similar(checks: list[ImageCheck], indices: list[int], near_bits: int) -> tuple[list[int], int]:
    fingerprints = [fingerprint for index in indices if (fingerprint := checks[index].fingerprint)]
    sizes = [checks[index].size or (1, 1) for index in indices]
    if not fingerprints:
        return [], 0
    bits, colours = (
        np.stack([each.bits for each in fingerprints]),
        np.stack([each.colours for each in fingerprints]),
    )
    aspects = np.array([width / height for width, height in sizes])
    groups = group_near_duplicates(bits, colours, aspects, near_bits)
    return groups.labels.tolist(), groups.num_crowded


def bucket_uses(dataset: Dataset, batch_size: int) -> list[BucketUse]:
    """The buckets that have rows, with their batches."""
    used = dataset.row_buckets[dataset.row_buckets != LEFT_OUT]
    counts = np.bincount(used, minlength=len(dataset.buckets)).tolist()
    return [
        BucketUse(bucket.width, bucket.height, rows, rows // batch_size, rows % batch_size)
        for bucket, rows in zip(dataset.buckets, counts, strict=True)
        if rows
    ]
