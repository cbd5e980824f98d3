"""The lines of a JSONL as columns of numbers, checked; and what is wrong with the other lines."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from flowloom.printable import printable

Columns = dict[str, NDArray[Any]]

KINDS: dict[str, str] = {
    "line": "<i8",
    "offset": "<i8",
    "length": "<i4",
    "width": "<i8",
    "height": "<i8",
    "loss_weight": "<f4",
    "caption_chars": "<i4",
}
"""Line number from 1; where its bytes start, and how many; pixels; 0 to 1; of the longest caption."""
MAX_SIDE = 1_000_000
"""Pixels; a larger recorded size is a mistake."""
FLAGS = ("is_tag_based", "is_url_based")
BLOCK_BYTES = 2**20
"""Read and parsed at a time: some 2,500 rows, which stay in the processor's cache."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowProblem:
    """A line that cannot be trained, and why."""

    line: int
    reason: str
    dataset: int = 0
    """Which of several data sets it belongs to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))


class Unusable(Exception):
    """Why a row cannot be trained."""


@dataclass(frozen=True)
class Scanned:
    """Some lines of a file."""

    columns: Columns
    problems: list[RowProblem]
    num_lines: int


def scan(path: Path, start: int = 0, stop: int | None = None) -> Scanned:
    """The lines of `path` between two byte offsets, both at the start of a line; numbered from 1.

    Each block of lines is checked as columns; where anything is amiss, its lines are checked one by one.
    """
    parts: list[Columns] = []
    problems: list[RowProblem] = []
    num_lines = 0
    for offset, block in _blocks(path, start, stop):
        columns = _whole(block, offset)
        num_more = len(columns["line"]) if columns else block.count(b"\n") + (not block.endswith(b"\n"))
        if columns is None:
            columns, found = _one_by_one(block, offset)
            problems += [RowProblem(num_lines + problem.line, problem.reason) for problem in found]
        columns["line"] += num_lines
        num_lines += num_more
        parts.append(columns)
    joined = {
        name: np.concatenate([np.empty(0, kind), *(p[name] for p in parts)]) for name, kind in KINDS.items()
    }
    return Scanned(joined, problems, num_lines)


def _blocks(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Whole lines of about BLOCK_BYTES, each with its offset in the file; a byte order mark is left out."""
    with path.open("rb") as file:
        if start == 0 and file.read(len(_BOM)) == _BOM:
            start = len(_BOM)
        file.seek(start)
        while stop is None or start < stop:
            size = BLOCK_BYTES if stop is None else min(BLOCK_BYTES, stop - start)
            block = file.read(size)
            if not block:
                return
            if not block.endswith(b"\n"):
                block += file.readline()
            yield start, block
            start += len(block)


class _Usable(msgspec.Struct, gc=False):
    """A row about which nothing needs to be said; other keys are passed over."""

    filename: Annotated[str, msgspec.Meta(min_length=1)]
    caption_or_tags: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    width: Annotated[int, msgspec.Meta(gt=0, le=MAX_SIDE)]
    height: Annotated[int, msgspec.Meta(gt=0, le=MAX_SIDE)]
    loss_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    is_tag_based: bool | None = False
    is_url_based: bool | None = False


_USABLE = msgspec.json.Decoder(_Usable)


def _whole(block: bytes, offset: int) -> Columns | None:
    """The columns of the lines of `block` when every one of them is a usable row; else None."""
    letters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(letters == ord("\n")) + 1
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block) + 1)
    # Inside of an object no bracket that closes is followed by one that opens: every row ends where its
    # line does, or two share one, and then there are more rows than lines.
    inner = ends[:-1]
    before = letters[inner - 2]
    before = np.where(before == ord("\r"), letters[inner - 3], before)
    if letters[0] != ord("{") or (before != ord("}")).any() or (letters[inner] != ord("{")).any():
        return None
    try:
        block.decode()  # The decoder does not look at the texts that it passes over.
        rows = _USABLE.decode_lines(block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if len(rows) != len(ends):
        return None
    longest = [len(c) if type(c) is str else max(map(len, c)) for c in (row.caption_or_tags for row in rows)]
    starts = np.concatenate(([0], ends[:-1]))
    return {
        "line": np.arange(1, len(rows) + 1),
        "offset": offset + starts,
        "length": (ends - 1 - starts).astype(np.int32),
        "width": np.array([row.width for row in rows]),
        "height": np.array([row.height for row in rows]),
        "loss_weight": np.array([row.loss_weight for row in rows], np.float32),
        "caption_chars": np.array(longest, np.int32),
    }


def _one_by_one(block: bytes, offset: int) -> tuple[Columns, list[RowProblem]]:
    values: list[tuple[float, ...]] = []
    problems: list[RowProblem] = []
    for number, line in enumerate(block.split(b"\n"), start=1):
        if line.strip():
            try:
                values.append((number, offset, len(line), *check_row(orjson.loads(line))))
            except orjson.JSONDecodeError as error:
                problems.append(RowProblem(number, f"not JSON: {error}"))
            except Unusable as error:
                problems.append(RowProblem(number, str(error)))
        offset += len(line) + 1
    columns = zip(*values, strict=True) if values else [()] * len(KINDS)
    found = {name: np.array(c, dtype=kind) for (name, kind), c in zip(KINDS.items(), columns, strict=True)}
    return found, problems


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
