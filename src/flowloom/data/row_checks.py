"""The rules for one row of a JSONL, without numpy: the studio applies them too."""

from __future__ import annotations

import math
from typing import Any

MAX_SIDE = 1_000_000
"""Pixels; a larger recorded size is a mistake."""
FLAGS = ("is_tag_based", "is_url_based")


class Unusable(Exception):
    """Why a row cannot be trained."""


def check_row(row: Any) -> tuple[int, int, float, int]:
    """Width, height, loss weight and longest caption of a parsed line, after all about it was checked.

    Raises:
        Unusable: it cannot be trained.
    """
    if type(row) is not dict:
        raise Unusable("not a JSON object")
    if type(row.get("filename")) is not str:
        raise Unusable(f"filename is {row.get('filename')!r:.60}; it must be text")
    longest = max(map(len, captions_of(row)))
    for name in FLAGS:
        if row.get(name) not in (None, False, True):  # 0 and 1 are what some tables write
            raise Unusable(f"{name} is {row[name]!r:.60}; it must be true or false")
    if not row["filename"]:
        raise Unusable("filename is empty")
    return _side(row, "width"), _side(row, "height"), _loss_weight(row.get("loss_weight", 1.0)), longest


def captions_of(row: dict[str, Any]) -> list[str]:
    """The captions of a parsed line, one or several.

    Raises:
        Unusable: they are no text.
    """
    given = row.get("caption_or_tags")
    if type(given) is str:
        return [given]
    if type(given) is not list or not given or {type(caption) for caption in given} != {str}:
        raise Unusable(f"caption_or_tags is {given!r:.60}; it must be text, or a list of texts")
    return given


def _side(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise Unusable(f"{key} is {value!r:.60}; every row needs the size of its image in pixels")
    if not 0 < value <= MAX_SIDE:
        raise Unusable(f"{key} is {value}; every row needs the size of its image in pixels")
    return value


def _loss_weight(value: Any) -> float:
    if value is None:
        return 1.0
    if type(value) not in (int, float) or not 0 <= value <= 1 or math.isnan(value):
        raise Unusable(f"loss_weight is {value!r:.60}; it must be a number from 0 to 1")
    return float(value)
