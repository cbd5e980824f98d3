"""The rules for one row of a JSONL, without numpy, for the studio as well."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

MAX_SIDE = 1_000_000
"""Maximum width and height in pixels."""
CAPTION, IS_TAGS, REFERENCES = "caption_or_tags", "is_tag_based", "references"
FLAGS = (IS_TAGS, "is_url_based")
_BOM = b"\xef\xbb\xbf"


class Unusable(Exception):
    """The reason why a row cannot be trained."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row that can be trained."""

    fields: dict[str, Any]
    """All keys of the line."""
    width: int
    height: int
    loss_weight: float
    caption_chars: int
    """Length of the longest caption."""
    num_references: int
    """Images that the image was edited from."""

    @property
    def filename(self) -> str:
        """Path relative to the image folder, or URL."""
        return self.fields["filename"]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A line that cannot be trained, and the reason."""

    reason: str
    fields: dict[str, Any] = field(default_factory=dict)
    """Empty if the line is not a JSON object."""

    @property
    def filename(self) -> str:
        """Empty if the row names no file."""
        name = self.fields.get("filename")
        return name if isinstance(name, str) else ""


def parse(line: bytes) -> Row | BadRow:
    """One checked line of a JSONL: the rule of training, the gallery, tagging, lint and builds."""
    try:
        fields = orjson.loads(line.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        return BadRow(f"not JSON: {error}")
    try:
        return Row(fields, *check_row(fields))
    except Unusable as error:
        return BadRow(str(error), cast("dict[str, Any]", fields) if type(fields) is dict else {})


def check_row(row: Any) -> tuple[int, int, float, int, int]:
    """Width, height, loss weight, length of the longest caption and number of references of a parsed line.

    Raises:
        Unusable: the row cannot be trained.
    """
    if type(row) is not dict:
        raise Unusable("not a JSON object")
    row = cast("dict[str, Any]", row)
    if type(row.get("filename")) is not str:
        raise Unusable(f"filename is {row.get('filename')!r:.60}; it must be text")
    longest = max(map(len, captions_of(row)))
    for name in FLAGS:
        if row.get(name) not in (None, False, True):  # some tables have 0 and 1
            raise Unusable(f"{name} is {row[name]!r:.60}; it must be true or false")
    if not row["filename"]:
        raise Unusable("filename is empty")
    weight, num_references = _loss_weight(row.get("loss_weight", 1.0)), len(references_of(row))
    return _side(row, "width"), _side(row, "height"), weight, longest, num_references


def captions_of(row: dict[str, Any]) -> list[str]:
    """The captions of a parsed line, one or several.

    Raises:
        Unusable: they are not text.
    """
    given: Any = row.get("caption_or_tags")
    if type(given) is str:
        return [given]
    captions = cast("list[str]", given) if type(given) is list else []
    if not captions or {type(caption) for caption in captions} != {str}:
        raise Unusable(f"caption_or_tags is {given!r:.60}; it must be text, or a list of texts")
    return captions


def references_of(row: dict[str, Any]) -> tuple[str, ...]:
    """Files of the images that the image of `row` was edited from, named like `filename`.

    Raises:
        Unusable: they are not a list of names.
    """
    given = row.get(REFERENCES)
    if given is None:
        return ()
    names = cast("list[Any]", given) if type(given) is list else [None]
    if not all(type(name) is str and name for name in names):
        raise Unusable(f"references is {given!r:.60}; it must be a list of file names")
    return tuple(names)


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
