"""A lint's report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from flowloom.datasets.lint.report import KINDS, BucketUse, CaptionStats, Report, Spread

WIDTH = 32
"""Characters of the longest bar."""


def report_text(report: Report, shown: int) -> str:
    """The whole report, with the first `shown` findings of each kind."""
    return "\n".join(
        [*_head(report), *_findings(report, shown), *_buckets(report), *_captions(report.captions)]
    )


def _head(report: Report) -> Iterator[str]:
    aside = f", {report.not_looked_at:,} not looked at" if report.not_looked_at else ""
    yield f"file       {report.path}"
    yield f"rows       {report.rows:,}, {report.usable:,} usable"
    yield f"pictures   {report.looked_at:,} decoded in {report.seconds:.1f} s{aside}"
    levels = ((report.count("error"), "errors"), (report.count("warning"), "warnings"))
    yield "found      " + ", ".join(f"{count:,} {name}" for count, name in levels)
    if report.crowded:
        yield f"not all    {report.crowded_text}"


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
    short = sum(bool(bucket.remainder) for bucket in report.buckets)
    yield f"\nbuckets    {len(report.buckets)} used; {short} end in a batch of fewer than {report.batch_size}"
    for bucket in report.buckets:
        size = f"{bucket.width}x{bucket.height}"
        bar = "#" * max(1, round(WIDTH * bucket.rows / most))
        yield f"  {size:>9} {bucket.rows:>9,}  {_batches(bucket):<28} {bar}"


def _batches(bucket: BucketUse) -> str:
    rest = f" and {bucket.remainder} more" if bucket.remainder else ""
    return f"{bucket.batches:,} batches{rest}"


def _captions(stats: CaptionStats) -> Iterator[str]:
    prose = stats.rows - stats.tag_based
    kinds = f"{stats.tag_based:,} tags, {prose:,} prose, {stats.empty:,} empty"
    yield f"\ncaptions   {kinds}; {stats.distinct:,} distinct"
    for name, numbers in (
        ("characters", stats.characters),
        ("tokens", stats.tokens),
        ("tags a row", stats.tags_per_row),
    ):
        if numbers:
            yield f"  {name:<10} {spread_text(numbers)}"
    if stats.tokens is None:
        yield "  tokens     not counted: --tokenizer names the folder of T5's"
    if stats.top_tags:
        yield f"  tags       {stats.distinct_tags:,} distinct, {stats.tags_once:,} of them in one row only"
        yield "  most used  " + ", ".join(f"{tag} ({count:,})" for tag, count in stats.top_tags[:12])


def spread_text(numbers: Spread) -> str:
    """A spread in words."""
    return (
        f"{numbers.least:,} to {numbers.most:,}, median {numbers.median:,}, 95% up to {numbers.most_have:,}"
    )
