"""Checked columns of a JSONL's lines, and the problems of unusable lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from flowloom.data.row_checks import MAX_FPS, MAX_FRAMES, MAX_SIDE, BadRow, frames_of, parse
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
    "num_references": "<i4",
    "num_frames": "<i4",
    "fps": "<f4",
}
"""Line number from 1; byte offset and length; pixels; 0 to 1; length of the longest caption; references;
frames of a clip and their rate, as in `row_checks.Row`."""
BLOCK_BYTES = 2**20
"""Bytes read and parsed at a time: about 2,500 rows, which fit into the processor's cache."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowProblem:
    """An unusable line and the reason."""

    line: int
    reason: str
    dataset: int = 0
    """Number of its dataset."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason))


@dataclass(frozen=True)
class Scanned:
    """Some lines of a file."""

    columns: Columns
    problems: list[RowProblem]
    num_lines: int


def scan(path: Path, start: int = 0, stop: int | None = None) -> Scanned:
    """The lines of `path` between two byte offsets, both at the start of a line, numbered from 1.

    Each block of lines is checked as columns first; if that fails, its lines are checked one by one.
    """
    parts: list[Columns] = []
    problems: list[RowProblem] = []
    num_lines = 0
    for offset, block in _blocks(path, start, stop):
        columns = _all_usable(block, offset)
        num_more = len(columns["line"]) if columns else block.count(b"\n") + (not block.endswith(b"\n"))
        if columns is None:
            columns, unusable = _one_by_one(block, offset)
            problems += [RowProblem(num_lines + problem.line, problem.reason) for problem in unusable]
        columns["line"] += num_lines
        num_lines += num_more
        parts.append(columns)
    joined = {
        name: np.concatenate([np.empty(0, kind), *(p[name] for p in parts)]) for name, kind in KINDS.items()
    }
    return Scanned(joined, problems, num_lines)


def _blocks(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Complete lines of about BLOCK_BYTES with their offset in the file, without a byte order mark."""
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
    """A row without problems; other keys are ignored."""

    filename: Annotated[str, msgspec.Meta(min_length=1)]
    caption_or_tags: str | Annotated[list[str], msgspec.Meta(min_length=1)]
    width: Annotated[int, msgspec.Meta(gt=0, le=MAX_SIDE)]
    height: Annotated[int, msgspec.Meta(gt=0, le=MAX_SIDE)]
    loss_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    is_tag_based: bool | None = False
    is_url_based: bool | None = False
    references: list[Annotated[str, msgspec.Meta(min_length=1)]] | None = None
    start_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    num_frames: Annotated[int, msgspec.Meta(gt=0, le=MAX_FRAMES)] | None = None
    fps: Annotated[float, msgspec.Meta(gt=0, le=MAX_FPS)] | None = None


_USABLE = msgspec.json.Decoder(_Usable)


def _all_usable(block: bytes, offset: int) -> Columns | None:
    """The columns of `block` if every line is a usable row; otherwise None."""
    letters = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(letters == ord("\n")) + 1
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block) + 1)
    # Within an object, a closing brace is never followed by an opening one. So each row ends with its line,
    # or two rows share a line, and then there are more rows than lines.
    inner = ends[:-1]
    before = letters[inner - 2]
    before = np.where(before == ord("\r"), letters[inner - 3], before)
    if letters[0] != ord("{") or (before != ord("}")).any() or (letters[inner] != ord("{")).any():
        return None
    try:
        block.decode()  # msgspec does not decode the texts that it ignores.
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
        "num_references": np.array([len(row.references or ()) for row in rows], np.int32),
        "num_frames": np.array([frames_of(row.filename, row.num_frames) for row in rows], np.int32),
        "fps": np.array([row.fps or 0.0 for row in rows], np.float32),
    }


def _one_by_one(block: bytes, offset: int) -> tuple[Columns, list[RowProblem]]:
    values: list[tuple[float, ...]] = []
    problems: list[RowProblem] = []
    for number, line in enumerate(block.split(b"\n"), start=1):
        if line.strip():
            row = parse(line)
            if isinstance(row, BadRow):
                problems.append(RowProblem(number, row.reason))
            else:
                sizes = row.width, row.height, row.loss_weight, row.caption_chars, row.num_references
                values.append((number, offset, len(line), *sizes, row.num_frames, row.fps))
        offset += len(line) + 1
    columns = zip(*values, strict=True) if values else [()] * len(KINDS)
    arrays = {name: np.array(c, dtype=kind) for (name, kind), c in zip(KINDS.items(), columns, strict=True)}
    return arrays, problems
