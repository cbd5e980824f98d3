"""FLOW's metadata JSONL as columns: what is needed of every row in arrays, the rest left in the file."""

from __future__ import annotations

import mmap
from array import array
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

    def __init__(
        self,
        path: Path,
        numbers: NDArray[np.int64],
        loss_weights: NDArray[np.float32],
        problems: list[RowProblem],
    ):
        self.path = path
        self.lines, self._offsets, self.widths, self.heights = np.ascontiguousarray(numbers.T)
        self.loss_weights = loss_weights
        self.problems = problems
        with path.open("rb") as file:
            # A map of its own keeps the file open; it goes with this object.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> Row:
        """The row number `index` of the usable ones.

        Raises:
            DataError: the file is not what it was when it was read; rows added at its end do no harm.
        """
        line, width, height = int(self.lines[index]), int(self.widths[index]), int(self.heights[index])
        fields = self._parsed(int(self._offsets[index]))
        if (fields.get("width"), fields.get("height")) != (width, height):
            raise DataError(f"{self.path}:{line}: the file was changed while it was in use. Start again.")
        return Row(
            index=index,
            line=line,
            filename=fields["filename"],
            caption=fields["caption_or_tags"],
            width=width,
            height=height,
            is_tag_based=bool(fields.get("is_tag_based")),
            is_url_based=bool(fields.get("is_url_based")),
            loss_weight=float(self.loss_weights[index]),
        )

    def _parsed(self, start: int) -> dict[str, Any]:
        if self._bytes.size() < len(self._bytes):
            return {}  # Touching what was cut off would end the process.
        end = self._bytes.find(b"\n", start)
        try:
            fields = orjson.loads(self._bytes[start : end if end >= 0 else len(self._bytes)])
        except orjson.JSONDecodeError:
            return {}
        return fields if type(fields) is dict else {}


def read_metadata(path: Path) -> Metadata:
    """The rows of the JSONL file at `path`; lines that cannot be trained are listed in `.problems`.

    Raises:
        DataError: the file is missing or has no usable row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. dataloader.jsonl_metadata_path names the JSONL to train on.")
    # Flat arrays: a million tuples would cost memory, and time in the collector.
    numbers, weights = array("q"), array("f")
    problems: list[RowProblem] = []
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start, offset = offset, offset + len(line)
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                start, line = start + 3, line[3:]
            if not line or line.isspace():
                continue
            try:
                width, height, weight = _numbers(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                problems.append(RowProblem(number, f"not JSON: {error}"))
            except _Unusable as error:
                problems.append(RowProblem(number, str(error)))
            else:
                numbers.extend((number, start, width, height))
                weights.append(weight)
    if not weights:
        first = f" Line {problems[0].line}: {problems[0].reason}." if problems else ""
        raise DataError(f"{path}: no usable row.{first}")
    columns = np.frombuffer(numbers, np.int64).reshape(-1, 4)
    return Metadata(path, columns, np.frombuffer(weights, np.float32), problems)


class _Unusable(Exception):
    """Why a row cannot be trained."""


def _numbers(row: Any) -> tuple[int, int, float]:
    """Width, height and loss weight of a parsed line, after everything about it was checked."""
    if type(row) is not dict:
        raise _Unusable("not a JSON object")
    name = _text(row, "filename")
    _text(row, "caption_or_tags")
    _flag(row, "is_tag_based")
    if not name:
        raise _Unusable("filename is empty")
    if _flag(row, "is_url_based") != ("://" in name):
        raise _Unusable("is_url_based must be true where filename is an address, and only there")
    return _side(row, "width"), _side(row, "height"), _loss_weight(row.get("loss_weight"))


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if type(value) is not str:
        raise _Unusable(f"{key} is {value!r:.60}; it must be text")
    return value


def _flag(row: dict[str, Any], key: str) -> bool:
    value = row.get(key)
    # Tables keep flags as 0 and 1; any text, "false" too, would count as true.
    if value not in (True, False, None):
        raise _Unusable(f"{key} is {value!r:.60}; it must be true or false")
    return bool(value)


def _side(row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 0 < value <= MAX_SIDE:
        raise _Unusable(f"{key} is {value!r:.60}; every row needs the size of its image in pixels")
    return value


def _loss_weight(value: Any) -> float:
    if value is None:
        return 1.0
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise _Unusable(f"loss_weight is {value!r:.60}; it must be a number from 0 to 1")
    return value


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
