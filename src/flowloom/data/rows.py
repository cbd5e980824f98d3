"""The lines of a JSONL as columns of numbers, checked; and what is wrong with the other lines."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

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
        lines = block.split(b"\n")
        if not lines[-1]:
            del lines[-1]
        columns = _whole(lines, offset)
        if columns is None:
            columns, found = _one_by_one(lines, offset)
            problems += [RowProblem(num_lines + problem.line, problem.reason) for problem in found]
        columns["line"] += num_lines
        num_lines += len(lines)
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


def _whole(lines: Sequence[bytes], offset: int) -> Columns | None:
    """The columns of `lines` when every one of them is a usable row, or empty; else None."""
    lengths = np.fromiter(map(len, lines), np.int64, len(lines))
    starts = offset + np.cumsum(lengths + 1) - lengths - 1
    try:
        rows = [orjson.loads(line) for line in lines if line]
        names = [row["filename"] for row in rows]
        captions = [row["caption_or_tags"] for row in rows]
        sides = [row["width"] for row in rows], [row["height"] for row in rows]
        weights = [row.get("loss_weight", 1.0) for row in rows]
        flags = [row.get(name, False) for name in FLAGS for row in rows]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None
    is_text = {*map(type, names), *map(type, captions)} <= {str} and all(names)
    if (
        not is_text
        or set(map(type, (*sides[0], *sides[1]))) - {int}
        or set(map(type, weights)) - {int, float}
        or set(map(type, flags)) - {bool}
    ):
        return None
    used = np.flatnonzero(lengths)
    try:
        width, height = (np.fromiter(side, np.int64, len(used)) for side in sides)
    except OverflowError:
        return None
    weight = np.fromiter(weights, np.float64, len(used))
    both = np.concatenate((width, height))
    if ((both <= 0) | (both > MAX_SIDE)).any() or not ((weight >= 0) & (weight <= 1)).all():
        return None
    return {
        "line": used + 1,
        "offset": starts[used],
        "length": lengths[used].astype(np.int32),
        "width": width,
        "height": height,
        "loss_weight": weight.astype(np.float32),
        "caption_chars": np.fromiter(map(len, captions), np.int32, len(used)),
    }


def _one_by_one(lines: Sequence[bytes], offset: int) -> tuple[Columns, list[RowProblem]]:
    values: list[tuple[float, ...]] = []
    problems: list[RowProblem] = []
    for number, line in enumerate(lines, start=1):
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
