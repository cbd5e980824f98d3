"""`flowloom dataset lint`: looks at every row and picture as training would, and says what is wrong."""

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
from flowloom.datasets.lint.look import Look, Looker
from flowloom.datasets.lint.near import MAX_BITS, groups_alike
from flowloom.datasets.lint.report import BucketUse, Finding, Report
from flowloom.datasets.load import load_dataset
from flowloom.errors import DataError
from flowloom.models.tokenizer import load_tokenizer
from flowloom.storage.base import StorageSection


@dataclass(frozen=True)
class LintOptions:
    """What to look at, and from where on it counts."""

    config: RunConfig
    """Its data set, buckets, batch size and token limit are what is checked."""
    tokenizer: Path | None = None
    """T5's; without one, tokens are not counted."""
    with_images: bool = True
    """Off: only the JSONL is read."""
    with_urls: bool = False
    """Fetch pictures from URLs as well."""
    upscale: float = 1.0
    """Upscaling beyond this factor is told."""
    near_bits: int = MAX_BITS
    """Bits of 128 in which near duplicates may differ; -1 looks for none."""
    threads: int = 4
    progress: Callable[[int], None] = field(default=lambda _: None)


@dataclass
class Seen:
    """The rows of a JSONL with what was seen of them."""

    dataset: Dataset
    looks: list[Look]
    report: Report
    storage: StorageSection
    """How stores are reached."""


def lint(options: LintOptions) -> Seen:
    """Everything that is wrong with the data set of `options.config`.

    Raises:
        DataError: the JSONL is missing, or not one of its rows can be used.
        WeightsError: the tokenizer is none.
    """
    started = time.monotonic()
    dataset = open_dataset(options.config)
    tokenize = load_tokenizer(options.tokenizer)[0] if options.tokenizer else None
    counter = CaptionCounter(tokenize)
    looks = _looks(dataset, options)
    findings = [
        Finding("broken_row", problem.line, "", problem.reason) for problem in dataset.metadata.problems
    ]
    for index, look in enumerate(looks):
        row = dataset.metadata.row(index)
        findings += _about_text(row, counter.add(row), options.config.model.t5_max_length)
        findings += _about_picture(dataset, row, look, options)
    copies, crowded = _copies(dataset, looks, options.near_bits)
    findings += copies
    metadata, data = dataset.metadata, options.config.dataloader
    num_looked = sum(look.is_seen or bool(look.damaged) for look in looks)
    report = Report(
        path=str(dataset.path),
        images=str(dataset.folder),
        rows=len(metadata) + len(metadata.problems),
        usable=len(metadata),
        looked_at=num_looked,
        not_looked_at=sum(look == Look() for look in looks),
        batch_size=data.batch_size,
        resolutions=list(data.base_resolution),
        max_tokens=options.config.model.t5_max_length,
        seconds=time.monotonic() - started,
        findings=findings,
        buckets=bucket_uses(dataset, data.batch_size),
        captions=counter.stats(),
        crowded=crowded,
    )
    return Seen(dataset, looks, report, options.config.storage)


def open_dataset(config: RunConfig) -> Dataset:
    """The data set of `config`, however many of its rows are broken.

    Raises:
        DataError: the JSONL is missing, or has no usable row at all.
    """
    limits = config.limits.model_copy(update={"skipped_percentage": 1.0})
    return load_dataset(config.model_copy(update={"limits": limits}))


def _looks(dataset: Dataset, options: LintOptions) -> list[Look]:
    if not options.with_images:
        return [Look()] * len(dataset.metadata)
    if "://" not in dataset.folder and not Path(dataset.folder).is_dir():
        raise DataError(f"{dataset.folder}: no such folder. --images names the one that the rows mean.")
    looker = Looker(dataset, options.with_urls, options.config.storage)
    return list(looker.look_at_all(options.threads, options.progress))


def _about_text(row: Row, num_tokens: int | None, max_tokens: int) -> Iterator[Finding]:
    if not row.caption.strip():
        yield Finding("empty_caption", row.line, row.filename, "the caption is empty")
    if num_tokens is not None and num_tokens > max_tokens:
        message = f"{num_tokens} tokens; training cuts off the last {num_tokens - max_tokens}"
        yield Finding("long_caption", row.line, row.filename, message, amount=num_tokens)
    problem = text_problem(row.caption) or text_problem(row.filename)
    if problem:
        yield Finding("encoding", row.line, row.filename, problem)
    if not row.loss_weight:
        yield Finding("no_weight", row.line, row.filename, "loss_weight is 0")


def _about_picture(dataset: Dataset, row: Row, look: Look, options: LintOptions) -> Iterator[Finding]:
    def found(kind: str, message: str, amount: float | None = None) -> Finding:
        return Finding(kind, row.line, row.filename, message, amount=amount)

    if look.missing:
        yield found("missing_file", look.missing)
    if look.damaged:
        yield found("damaged_file", look.damaged)
    recorded = (row.width, row.height)
    width, height = look.size or recorded
    if (width, height) != recorded:
        yield found("wrong_size", f"recorded as {row.width} x {row.height}, but it is {width} x {height}")
    bucket = int(dataset.row_buckets[row.index])
    if bucket == LEFT_OUT:
        cutoff = options.config.dataloader.ratio_cutoff
        ratio = max(row.width / row.height, row.height / row.width)
        yield found(
            "left_out", f"{row.width} x {row.height} is {ratio:.2f} to 1; {cutoff:g} is the limit", ratio
        )
        return
    size = dataset.sizes[bucket]
    scale = max(size[0] / width, size[1] / height)
    if scale > options.upscale:
        yield found(
            "small", f"{width} x {height} is upscaled {scale:.2f} times to {size[0]} x {size[1]}", scale
        )


def _copies(dataset: Dataset, looks: list[Look], near_bits: int) -> tuple[list[Finding], int]:
    """Rows that show what another one shows: the same file, the same bytes, or nearly the same picture; and
    how many pictures were not compared with all others."""
    found: list[Finding] = []
    metadata = dataset.metadata
    seen = [index for index, look in enumerate(looks) if look.is_seen]
    same: dict[bytes, list[int]] = defaultdict(list)
    for index in seen:
        same[looks[index].digest].append(index)
    for group, indices in enumerate(same.values()):
        found += _same_bytes([metadata.row(index) for index in indices], group)
    if near_bits < 0:
        return found, 0
    firsts = [indices[0] for indices in same.values()]
    labels, crowded = _alike(looks, firsts, near_bits)
    alike: dict[int, list[Row]] = defaultdict(list)
    for index, label in zip(firsts, labels, strict=True):
        alike[label].append(metadata.row(index))
    for label, rows in alike.items():
        for row in rows if len(rows) > 1 else []:
            others = ", ".join(str(other.line) for other in rows if other is not row)
            message = f"looks like line {others:.60}"
            found.append(Finding("alike", row.line, row.filename, message, group=len(same) + label))
    return found, crowded


def _same_bytes(rows: list[Row], group: int) -> Iterator[Finding]:
    if len(rows) < 2:
        return
    names = {row.filename for row in rows}
    first = rows[0]
    if len(names) > 1:
        yield Finding("same_file", first.line, first.filename, f"the first of {len(rows)}", group)
    for row in rows[1:]:
        if row.filename == first.filename:
            yield Finding(
                "repeated_row", row.line, row.filename, f"the file of line {first.line} again", group
            )
        else:
            message = f"the same bytes as {first.filename} in line {first.line}"
            yield Finding("same_file", row.line, row.filename, message, group)


def _alike(looks: list[Look], indices: list[int], near_bits: int) -> tuple[list[int], int]:
    prints = [found for index in indices if (found := looks[index].print)]
    sizes = [looks[index].size or (1, 1) for index in indices]
    if not prints:
        return [], 0
    bits, colours = np.stack([one.bits for one in prints]), np.stack([one.colours for one in prints])
    aspects = np.array([width / height for width, height in sizes])
    groups = groups_alike(bits, colours, aspects, near_bits)
    return groups.labels.tolist(), groups.crowded


def bucket_uses(dataset: Dataset, batch_size: int) -> list[BucketUse]:
    """The buckets that have rows, with their batches."""
    used = dataset.row_buckets[dataset.row_buckets != LEFT_OUT]
    counts = np.bincount(used, minlength=len(dataset.sizes)).tolist()
    return [
        BucketUse(width, height, rows, rows // batch_size, rows % batch_size)
        for (width, height), rows in zip(dataset.sizes, counts, strict=True)
        if rows
    ]
