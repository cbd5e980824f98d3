"""Captions and tags in numbers, and text that was decoded wrongly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from flowloom.data.metadata import Row
from flowloom.datasets.lint.report import CaptionStats, Spread
from flowloom.models.tokenizer import Tokenize

TOP_TAGS = 40
NUM_BARS = 24
# UTF-8 read as Windows-1252 leaves pairs such as these behind.
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u2018-\u2026]|â€|ðŸ")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")
_LOST = "\ufffd"


def split_tags(caption: str) -> list[str]:
    """The tags of a caption, as training splits them."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def mended_text(text: str) -> str:
    """`text` with UTF-8 that was read as Windows-1252 read again, and without control characters."""
    if _MOJIBAKE.search(text):
        for name in ("cp1252", "latin-1"):
            try:
                text = text.encode(name).decode("utf-8")
                break
            except UnicodeError:
                continue
    return _CONTROL.sub(lambda found: found[0] if found[0] == _LOST else "", text)


def text_problem(text: str) -> str:
    """What is wrong with the characters of `text`; nothing when all is well."""
    if _MOJIBAKE.search(text) and mended_text(text) != text:
        return f"UTF-8 read as another encoding: {text:.60}"
    if _LOST in text:
        return f"characters were lost when it was decoded: {text:.60}"
    return "it has control characters" if _CONTROL.search(text) else ""


def count_tokens(caption: str, tokenize: Tokenize) -> int:
    """T5's tokens of `caption`, the end included."""
    return len(tokenize(caption)) + 1


def spread(values: Sequence[int]) -> Spread | None:
    """How `values` are spread; None of none."""
    if not values:
        return None
    numbers = np.asarray(values)
    low, median, most_have, most = np.percentile(numbers, [0, 50, 95, 100], method="higher")
    # A few outliers would press all others into the first bar: what is far beyond shares the last one.
    width = max(1, -(-(min(int(most), 2 * int(most_have)) + 1) // NUM_BARS))
    bars = np.bincount(np.minimum(numbers // width, NUM_BARS - 1))
    return Spread(
        int(low),
        int(median),
        int(most_have),
        int(most),
        [(i * width, int(rows)) for i, rows in enumerate(bars)],
    )


class CaptionCounter:
    """Adds up captions, one row after the other."""

    def __init__(self, tokenize: Tokenize | None):
        self.tokenize = tokenize
        self._stats = CaptionStats(rows=0, tag_based=0, empty=0, distinct=0)
        self._hashes: set[int] = set()
        self._characters: list[int] = []
        self._tokens: list[int] = []
        self._tags_per_row: list[int] = []
        self._tags: Counter[str] = Counter()

    def add(self, row: Row) -> int | None:
        """Count a row; its tokens, where a tokenizer was given."""
        stats = self._stats
        stats.rows += 1
        stats.empty += not row.caption.strip()
        stats.tag_based += row.is_tag_based
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
        """Everything that was counted."""
        stats = self._stats
        stats.distinct = len(self._hashes)
        stats.characters = spread(self._characters)
        stats.tokens = spread(self._tokens)
        stats.tags_per_row = spread(self._tags_per_row)
        stats.distinct_tags = len(self._tags)
        stats.tags_once = sum(count == 1 for count in self._tags.values())
        stats.top_tags = self._tags.most_common(TOP_TAGS)
        return stats
