"""A lint's report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from flowloom.datasets.lint.report import KINDS, BucketUse, CaptionStats, Distribution, Report

WIDTH = 32
"""Characters of the longest bar."""


def report_text(report: Report, shown: int) -> str:
    """The report, with the first `shown` findings of each kind."""
    return "\n".join(
        [*_head(report), *_findings(report, shown), *_buckets(report), *_captions(report.captions)]
    )


def _head(report: Report) -> Iterator[str]:
    skipped = f", {report.num_not_checked:,} not opened" if report.num_not_checked else ""
    yield f"file       {report.path}"
    yield f"rows       {report.num_rows:,}, {report.num_usable:,} usable"
    yield f"images     {report.num_decoded:,} decoded in {report.seconds:.1f} s{skipped}"
    levels = ((report.count("error"), "errors"), (report.count("warning"), "warnings"))
    yield "findings   " + ", ".join(f"{count:,} {name}" for count, name in levels)
    if report.num_crowded:
        yield f"note       {report.crowded_message}"


def _findings(report: Report, shown: int) -> Iterator[str]:
    for kind, count in report.counts.items():
        level, title, hint = KINDS[kind]
        yield f"\n{level:<8} {title}: {count:,}. {hint}"
        for finding in report.of(kind)[:shown]:
            name = f"{finding.filename}: " if finding.filename else ""
            line = f"{report.path}:{finding.line}: " if finding.line else ""
            yield f"  {line}{name}{finding.message}"
        if count > shown:
            yield f"  ... and {count - shown:,} more"


def _buckets(report: Report) -> Iterator[str]:
    most = max((bucket.rows for bucket in report.buckets), default=1)
    num_incomplete = sum(bool(bucket.remainder) for bucket in report.buckets)
    used = f"{len(report.buckets)} used; {num_incomplete}"
    yield f"\nbuckets    {used} end in a batch of fewer than {report.batch_size}"
    for bucket in report.buckets:
        size = f"{bucket.width}x{bucket.height}"
        bar = "#" * max(1, round(WIDTH * bucket.rows / most))
        yield f"  {size:>9} {bucket.rows:>9,}  {_batches(bucket):<28} {bar}"


def _batches(bucket: BucketUse) -> str:
    rest = f" and {bucket.remainder} more" if bucket.remainder else ""
    return f"{bucket.batches:,} batches{rest}"


def _captions(stats: CaptionStats) -> Iterator[str]:
    prose = stats.num_rows - stats.num_tag_based
    kinds = f"{stats.num_tag_based:,} tags, {prose:,} prose, {stats.num_empty:,} empty"
    yield f"\ncaptions   {kinds}; {stats.num_distinct:,} distinct"
    for name, numbers in (
        ("characters", stats.characters),
        ("tokens", stats.tokens),
        ("tags/row", stats.tags_per_row),
    ):
        if numbers:
            yield f"  {name:<10} {distribution_text(numbers)}"
    if stats.tokens is None:
        yield "  tokens     not counted: set T5's tokenizer folder with --tokenizer"
    if stats.top_tags:
        once = f"{stats.num_tags_used_once:,} of them in only one row"
        yield f"  tags       {stats.num_distinct_tags:,} distinct, {once}"
        yield "  most used  " + ", ".join(f"{tag} ({count:,})" for tag, count in stats.top_tags[:12])


def distribution_text(numbers: Distribution) -> str:
    """A distribution as text."""
    return f"{numbers.minimum:,} to {numbers.maximum:,}, median {numbers.median:,}, 95% up to {numbers.p95:,}"
