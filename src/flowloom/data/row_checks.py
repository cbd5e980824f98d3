"""The rules for one row of a JSONL, without numpy, for the studio as well."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import orjson

from flowloom.image_suffixes import VIDEO_SUFFIXES

MAX_SIDE = 1_000_000
"""Maximum width and height in pixels."""
CAPTION, IS_TAGS, REFERENCES = "caption_or_tags", "is_tag_based", "references"
MAX_FRAMES = 100_000_000
"""Maximum number of frames of a clip."""
MAX_FPS = 1000.0
"""Maximum frame rate of a clip."""
UNKNOWN_FRAMES = -1
"""Number of frames of a video whose row does not give it."""
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
    num_frames: int
    """0: an image; UNKNOWN_FRAMES: a video whose row does not give it."""
    fps: float
    """Frame rate that `num_frames` counts; 0: the run's."""

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
        return Row(fields, *check_row(fields), *check_clip(fields))
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


def check_clip(row: dict[str, Any]) -> tuple[int, float]:
    """Number of frames and frame rate of a parsed line, as in `Row`.

    Raises:
        Unusable: a value is of the wrong type or range.
    """
    start_s, num_frames, fps = (row.get(key) for key in ("start_s", "num_frames", "fps"))
    if start_s is not None and not (type(start_s) in (int, float) and 0 <= start_s < math.inf):
        raise Unusable(f"start_s is {start_s!r:.60}; it must be the start of the clip in seconds, 0 or more")
    if fps is not None and not (type(fps) in (int, float) and 0 < fps <= MAX_FPS):
        raise Unusable(f"fps is {fps!r:.60}; it must be a frame rate above 0, up to {MAX_FPS:g}")
    if type(num_frames) is float and num_frames.is_integer():
        num_frames = int(num_frames)
    if num_frames is not None and not (type(num_frames) is int and 0 < num_frames <= MAX_FRAMES):
        raise Unusable(f"num_frames is {num_frames!r:.60}; it must be the number of frames, 1 or more")
    return frames_of(row["filename"], num_frames), float(fps or 0)


def frames_of(filename: str, num_frames: int | None) -> int:
    """Number of frames of a row: 0 for an image, UNKNOWN_FRAMES for a video without `num_frames`."""
    if num_frames is not None:
        return num_frames
    return UNKNOWN_FRAMES if filename.lower().endswith(VIDEO_SUFFIXES) else 0


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
    names: list[Any] = cast("list[Any]", given) if type(given) is list else [None]
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
