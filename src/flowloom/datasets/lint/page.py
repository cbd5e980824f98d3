"""Write the report of a lint as one self-contained HTML page with images and charts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowloom.data.images.decode import load_image
from flowloom.datasets.lint.check import LintedDataset
from flowloom.datasets.lint.images import ImageChecker, displayed_size
from flowloom.datasets.lint.report import KINDS, BucketUse, Distribution, Finding, Report
from flowloom.errors import ImageError, SourceError

THUMBNAIL = 160
"""Pixels of a thumbnail's longer side."""
SHOWN = 48
"""Findings shown of each kind; the rest are counted."""
_WITHOUT_IMAGES = ("broken_row", "missing_file")


def write_page(path: Path, result: LintedDataset) -> None:
    """Write the page to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(result), encoding="utf-8")


def page(result: LintedDataset) -> str:
    """The page's HTML."""
    report = result.report
    style = resources.files("flowloom.datasets.lint").joinpath("page.css").read_text(encoding="utf-8")
    parts = [_head(report), *_sections(result), *_statistics(report)]
    title = escape(Path(report.path).name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: lint</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{''.join(parts)}\n</main></body></html>\n"
    )


def _head(report: Report) -> str:
    errors, warnings = report.count("error"), report.count("warning")
    verdict = "It is ready for training." if not errors else "Some rows cannot be used for training."
    tiles = [
        ("rows", f"{report.num_rows:,}", ""),
        ("usable", f"{report.num_usable:,}", ""),
        ("images decoded", f"{report.num_decoded:,}", ""),
        ("errors", f"{errors:,}", "error" if errors else "good"),
        ("warnings", f"{warnings:,}", "warning" if warnings else "good"),
    ]
    cells = "".join(
        f'<div class="tile {mark}"><b>{value}</b><span>{name}</span></div>' for name, value, mark in tiles
    )
    sizes = ", ".join(map(str, report.resolutions))
    return (
        f"<header><h1>{escape(Path(report.path).name)}</h1>"
        f'<p class="verdict">{verdict}</p>'
        f'<p class="quiet">{escape(report.path)} · images in {escape(report.images)} · resolution {sizes}, '
        f"batches of {report.batch_size}</p></header>"
        f'<div class="tiles">{cells}</div>{_limits(report)}{_contents(report)}'
    )


def _limits(report: Report) -> str:
    return f'<p class="verdict">{escape(report.crowded_message)}</p>' if report.num_crowded else ""


def _contents(report: Report) -> str:
    links = "".join(
        f'<a class="{KINDS[kind].level}" href="#{kind}">{KINDS[kind].title} <b>{count:,}</b></a>'
        for kind, count in report.counts.items()
    )
    return f'<nav aria-label="Findings">{links}</nav>' if links else ""


def _sections(result: LintedDataset) -> Iterator[str]:
    thumbnails = Thumbnails(result)
    for kind, count in result.report.counts.items():
        level, title, hint = KINDS[kind]
        findings = result.report.of(kind)[:SHOWN]
        more = (
            f'<p class="quiet">{count - len(findings):,} more in the JSON report.</p>'
            if count > len(findings)
            else ""
        )
        body = _table(findings) if kind in _WITHOUT_IMAGES else _cards(findings, thumbnails)
        yield (
            f'<section id="{kind}"><h2><i class="dot {level}"></i>{title} '
            f'<span class="count">{count:,}</span></h2>'
            f'<p class="quiet">{escape(hint)}</p>{body}{more}</section>'
        )


def _table(findings: Sequence[Finding]) -> str:
    rows = "".join(
        f'<tr><td class="line">{finding.line}</td><td>{escape(finding.filename)}</td>'
        f"<td>{escape(finding.message)}</td></tr>"
        for finding in findings
    )
    head = "<thead><tr><th>line</th><th>file</th><th>finding</th></tr></thead>"
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def _cards(findings: Sequence[Finding], thumbnails: Thumbnails) -> str:
    """Cards with images; duplicates of one another are in one frame."""
    frames: list[str] = []
    for group, members in groupby(findings, key=lambda finding: finding.group):
        cards = "".join(_card(finding, thumbnails) for finding in members)
        frames.append(cards if group is None else f'<div class="group">{cards}</div>')
    return f'<div class="cards">{"".join(frames)}</div>'


def _card(finding: Finding, thumbnails: Thumbnails) -> str:
    thumbnail = thumbnails.of_line(finding.line)
    name = escape(finding.filename)
    image = f'<img alt="{name}" src="{thumbnail}">' if thumbnail else '<div class="none">no image</div>'
    return (
        f"<figure>{image}<figcaption><b>{name}</b>"
        f"<span>line {finding.line}</span><span>{escape(finding.message)}</span></figcaption></figure>"
    )


class Thumbnails:
    """Thumbnails as data URLs, made on request."""

    def __init__(self, result: LintedDataset):
        self._dataset = result.dataset
        self._checks = result.checks
        self._checker = ImageChecker(result.dataset, with_urls=True, storage=result.storage)
        self._index = {int(line): index for index, line in enumerate(result.dataset.metadata.lines)}

    def of_line(self, line: int) -> str:
        """The thumbnail of a line as a data URL; "" if it cannot be shown."""
        index = self._index.get(line)
        if index is None or not self._checks[index].is_decoded:
            return ""
        try:
            source = self._checker.source(self._dataset.metadata.row(index))
            width, height = displayed_size(source)
            scale = THUMBNAIL / max(width, height)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            return data_url(load_image(source, size, self._dataset.background, self._dataset.max_megapixels))
        except (ImageError, SourceError):
            return ""


def data_url(pixels: NDArray[np.uint8]) -> str:
    """`pixels` (h, w, 3) as a JPEG in a URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=78)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _statistics(report: Report) -> Iterator[str]:
    yield _buckets(report)
    stats = report.captions
    prose = stats.num_rows - stats.num_tag_based
    charts = "".join(
        _histogram(name, numbers, limit)
        for name, numbers, limit in (
            ("Tokens", stats.tokens, report.max_tokens),
            ("Characters", stats.characters, None),
            ("Tags per row", stats.tags_per_row, None),
        )
        if numbers
    )
    tags = "".join(f"<li>{escape(tag)} <b>{count:,}</b></li>" for tag, count in stats.top_tags)
    listed = (
        f"<h3>Most used tags</h3><p class='quiet'>{stats.num_distinct_tags:,} distinct, "
        f'{stats.num_tags_used_once:,} of them in only one row</p><ul class="tags">{tags}</ul>'
        if tags
        else ""
    )
    yield (
        f'<section id="captions"><h2>Captions</h2><p class="quiet">{stats.num_tag_based:,} tags, '
        f"{prose:,} prose, {stats.num_empty:,} empty; {stats.num_distinct:,} distinct</p>"
        f'<div class="charts">{charts}</div>{listed}</section>'
    )


def _buckets(report: Report) -> str:
    most = max((bucket.rows for bucket in report.buckets), default=1)
    largest = max((max(bucket.width, bucket.height) for bucket in report.buckets), default=1)
    rows = "".join(_bucket(bucket, most, largest) for bucket in report.buckets)
    names = ("", "size", "rows", "", "batches", "last batch")
    head = f"<thead><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr></thead>"
    return (
        '<section id="buckets"><h2>Buckets</h2><p class="quiet">Every row is trained once per epoch: the '
        f"last batch of a bucket may be incomplete.</p><table class='buckets'>{head}"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _bucket(bucket: BucketUse, most: int, largest: int) -> str:
    width, height = (max(3, round(22 * side / largest)) for side in (bucket.width, bucket.height))
    rest = f"{bucket.remainder:,}" if bucket.remainder else "full"
    return (
        f'<tr><td><i class="shape" style="width:{width}px;height:{height}px"></i></td>'
        f"<td>{bucket.width} × {bucket.height}</td><td class='number'>{bucket.rows:,}</td>"
        f'<td class="bar"><i style="width:{100 * bucket.rows / most:.1f}%"></i></td>'
        f"<td class='number'>{bucket.batches:,}</td><td class='number'>{rest}</td></tr>"
    )


def _histogram(name: str, numbers: Distribution, limit: int | None) -> str:
    highest = max(rows for _, rows in numbers.bars)
    bars = "".join(
        f'<i class="{"over" if limit and low > limit else ""}" style="height:{100 * rows / highest:.1f}%" '
        f'title="from {low:,}: {rows:,} rows"></i>'
        for low, rows in numbers.bars
    )
    return (
        f'<figure class="chart"><figcaption><b>{name}</b><span>median {numbers.median:,}, 95% up to '
        f'{numbers.p95:,}</span></figcaption><div class="bars">{bars}</div>'
        f'<div class="axis"><span>0</span><span>{numbers.maximum:,}</span></div></figure>'
    )
