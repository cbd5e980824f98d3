"""FLOW's metadata JSONL as columns: what is needed of every row in arrays, the rest left in the file."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from flowloom.errors import DataError

MAX_SIDE = 1_000_000
"""Pixels; a larger recorded size is a mistake."""
EXAMPLES = 20


@dataclass(frozen=True)
class Row:
    """One sample, as its line says."""

    index: int
    line: int
    filename: str
    caption: str
    width: int
    height: int
    is_tag_based: bool
    is_url_based: bool
    loss_weight: float


@dataclass(frozen=True)
class RowProblem:
    """A line that cannot be trained, and why."""

    line: int
    reason: str


class Metadata:
    """The usable rows of a JSONL file; captions and names are read again from the file when asked for."""

    def __init__(self, path: Path, columns: dict[str, NDArray[Any]], problems: list[RowProblem]):
        self.path = path
        self.widths: NDArray[np.int64] = columns["width"]
        self.heights: NDArray[np.int64] = columns["height"]
        self.loss_weights: NDArray[np.float32] = columns["loss_weight"]
        self.lines: NDArray[np.int64] = columns["line"]
        self.problems = problems
        self._offsets: NDArray[np.int64] = columns["offset"]
        with path.open("rb") as file:
            # A map of its own keeps the file open; it goes with this object.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> Row:
        """The row number `index` of the usable ones."""
        start = int(self._offsets[index])
        end = self._bytes.find(b"\n", start)
        fields = orjson.loads(self._bytes[start : end if end >= 0 else len(self._bytes)])
        return Row(
            index=index,
            line=int(self.lines[index]),
            filename=fields["filename"],
            caption=fields["caption_or_tags"],
            width=int(self.widths[index]),
            height=int(self.heights[index]),
            is_tag_based=fields.get("is_tag_based") or False,
            is_url_based=fields.get("is_url_based") or False,
            loss_weight=float(self.loss_weights[index]),
        )


def read_metadata(path: Path) -> Metadata:
    """The rows of the JSONL file at `path`; lines that cannot be trained are listed in `.problems`.

    Raises:
        DataError: the file is missing or has no usable row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. dataloader.jsonl_metadata_path names the JSONL to train on.")
    values: list[tuple[int, int, int, int, float]] = []
    problems: list[RowProblem] = []
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                start, line = start + 3, line[3:]
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
                values.append((number, start, *_numbers(row)))
            except orjson.JSONDecodeError as error:
                problems.append(RowProblem(number, f"not JSON: {error}"))
            except _Unusable as error:
                problems.append(RowProblem(number, str(error)))
    if not values:
        first = f" Line {problems[0].line}: {problems[0].reason}." if problems else ""
        raise DataError(f"{path}: no usable row.{first}")
    return Metadata(path, _columns(values), problems)


class _Unusable(Exception):
    """Why a row cannot be trained."""


def _columns(values: Sequence[tuple[int, int, int, int, float]]) -> dict[str, NDArray[Any]]:
    kinds = {
        "line": np.int64,
        "offset": np.int64,
        "width": np.int64,
        "height": np.int64,
        "loss_weight": np.float32,
    }
    columns = zip(*values, strict=True)
    return {
        name: np.array(column, dtype=kind)
        for (name, kind), column in zip(kinds.items(), columns, strict=True)
    }


def _numbers(row: Any) -> tuple[int, int, float]:
    """Width, height and loss weight of a parsed line, after everything about it was checked."""
    if type(row) is not dict:
        raise _Unusable("not a JSON object")
    for key in ("filename", "caption_or_tags"):
        if type(row.get(key)) is not str:
            raise _Unusable(f"{key} is {row.get(key)!r:.60}; it must be text")
    if not row["filename"]:
        raise _Unusable("filename is empty")
    return _side(row, "width"), _side(row, "height"), _loss_weight(row.get("loss_weight", 1.0))


def _side(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise _Unusable(f"{key} is {value!r:.60}; every row needs the size of its image in pixels")
    if not 0 < value <= MAX_SIDE:
        raise _Unusable(f"{key} is {value}; every row needs the size of its image in pixels")
    return value


def _loss_weight(value: Any) -> float:
    if value is None:
        return 1.0
    if type(value) not in (int, float) or not 0 <= value <= 1 or math.isnan(value):
        raise _Unusable(f"loss_weight is {value!r:.60}; it must be a number from 0 to 1")
    return float(value)


def check_skipped(path: Path, skipped: dict[str, str], num_rows: int, limit: float) -> None:
    """Stop when more than the share `limit` of `num_rows` rows cannot be used.

    Args:
        skipped: reason by `file:line`.

    Raises:
        DataError: with the first of them.
    """
    if len(skipped) <= limit * num_rows:
        return
    listed = "".join(f"\n  {place}: {reason}" for place, reason in list(skipped.items())[:EXAMPLES])
    more = f"\n  ... and {len(skipped) - EXAMPLES} more" if len(skipped) > EXAMPLES else ""
    raise DataError(
        f"{path}: {len(skipped)} of {num_rows} rows cannot be used, more than limits.skipped_percentage "
        f"{limit:g} allows. Mend them, take them out, or raise the limit.{listed}{more}"
    )
