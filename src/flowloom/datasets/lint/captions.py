"""Statistics of captions and tags, and text that was decoded wrongly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from flowloom.data.metadata import Row
from flowloom.datasets.lint.report import CaptionStats, Distribution
from flowloom.models.tokenizer import Tokenize

TOP_TAGS = 40
NUM_BARS = 24
# Typical pairs of characters in UTF-8 that was decoded as Windows-1252.
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u2018-\u2026]|â€|ðŸ")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_LOST = "\ufffd"


def split_tags(caption: str) -> list[str]:
    """The tags of a caption, as training splits them."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def repaired_text(text: str) -> str:
    """`text` without control characters, with UTF-8 that was decoded as Windows-1252 decoded again."""
    if _MOJIBAKE.search(text):
        for name in ("cp1252", "latin-1"):
            try:
                text = text.encode(name).decode("utf-8")
                break
            except UnicodeError:
                continue
    return _CONTROL.sub(lambda match: match[0] if match[0] == _LOST else "", text)


def text_problem(text: str) -> str:
    """The problem with the characters of `text`; "" if there is none."""
    if _MOJIBAKE.search(text) and repaired_text(text) != text:
        return f"UTF-8 decoded as another encoding: {text:.60}"
    if _LOST in text:
        return f"characters were lost when it was decoded: {text:.60}"
    return "it contains control characters" if _CONTROL.search(text) else ""


def count_tokens(caption: str, tokenize: Tokenize) -> int:
    """The number of T5 tokens of `caption`, including the end token."""
    return len(tokenize(caption)) + 1


def distribution(values: Sequence[int]) -> Distribution | None:
    """The distribution of `values`; None if there are none."""
    if not values:
        return None
    numbers = np.asarray(values)
    low, median, p95, high = np.percentile(numbers, [0, 50, 95, 100], method="higher")
    # Outliers share the last bar; otherwise they would squeeze all others into the first one.
    width = max(1, -(-(min(int(high), 2 * int(p95)) + 1) // NUM_BARS))
    bars = np.bincount(np.minimum(numbers // width, NUM_BARS - 1))
    return Distribution(
        int(low),
        int(median),
        int(p95),
        int(high),
        [(i * width, int(rows)) for i, rows in enumerate(bars)],
    )


class CaptionCounter:
    """Collects statistics of captions, row by row."""

    def __init__(self, tokenize: Tokenize | None):
        self.tokenize = tokenize
        self._stats = CaptionStats(num_rows=0, num_tag_based=0, num_empty=0, num_distinct=0)
        self._hashes: set[int] = set()
        self._characters: list[int] = []
        self._tokens: list[int] = []
        self._tags_per_row: list[int] = []
        self._tags: Counter[str] = Counter()

    def add(self, row: Row) -> int | None:
        """Add a row; its number of tokens, or None without a tokenizer."""
        stats = self._stats
        stats.num_rows += 1
        stats.num_empty += not row.caption.strip()
        stats.num_tag_based += row.is_tag_based
        self._hashes.add(hash(row.caption))
        self._characters.append(len(row.caption))
        if row.is_tag_based:
            tags = split_tags(row.caption)
            self._tags_per_row.append(len(tags))
            self._tags.update(tags)
        if self.tokenize is None:
            return None
        self._tokens.append(count_tokens(row.caption, self.tokenize))
        return self._tokens[-1]

    def stats(self) -> CaptionStats:
        """The statistics of all rows that were added."""
        stats = self._stats
        stats.num_distinct = len(self._hashes)
        stats.characters = distribution(self._characters)
        stats.tokens = distribution(self._tokens)
        stats.tags_per_row = distribution(self._tags_per_row)
        stats.num_distinct_tags = len(self._tags)
        stats.num_tags_used_once = sum(count == 1 for count in self._tags.values())
        stats.top_tags = self._tags.most_common(TOP_TAGS)
        return stats
