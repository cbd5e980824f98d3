"""FLOW's metadata JSONL: columns of all rows in arrays, and single rows read from the file on demand."""

from __future__ import annotations

import os
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowloom.data.index import read_columns
from flowloom.data.row_checks import BadRow, captions_of, parse, references_of
from flowloom.data.rows import Columns, RowProblem
from flowloom.errors import DataError

__all__ = ["JoinedMetadata", "Metadata", "Row", "RowProblem", "Rows", "check_skipped", "read_metadata"]

EXAMPLES = 20
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Row:
    """One row, parsed from its line."""

    index: int
    line: int
    filename: str
    caption: str
    """The first one if there are several."""
    width: int
    height: int
    is_tag_based: bool
    is_url_based: bool
    loss_weight: float
    more_captions: tuple[str, ...] = ()
    dataset: int = 0
    """Number of its dataset."""
    references: tuple[str, ...] = ()
    """Files of the images that its image was edited from, named like `filename`."""
    start_s: float = 0.0
    """Start of a clip in its video, in seconds."""
    num_frames: int = 0
    """Frames of a clip at `fps`; 0: an image; UNKNOWN_FRAMES: a video whose row does not give it."""
    fps: float = 0.0
    """Frame rate that `num_frames` counts; 0: the run's."""

    @property
    def is_clip(self) -> bool:
        """True if the file is a video."""
        return self.num_frames != 0


class Rows(Protocol):
    """The usable rows of one or several datasets."""

    @property
    def path(self) -> Path: ...
    @property
    def problems(self) -> list[RowProblem]: ...
    @property
    def widths(self) -> NDArray[np.int64]: ...
    @property
    def heights(self) -> NDArray[np.int64]: ...
    @property
    def loss_weights(self) -> NDArray[np.float32]: ...
    @property
    def lines(self) -> NDArray[np.int64]: ...
    @property
    def caption_chars(self) -> NDArray[np.int32]: ...
    @property
    def num_references(self) -> NDArray[np.int32]: ...
    @property
    def num_frames(self) -> NDArray[np.int32]: ...
    @property
    def fps(self) -> NDArray[np.float32]: ...
    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """Row number `index` of the usable ones."""
        ...


class Metadata:
    """The usable rows of a JSONL file; captions and names are read from the file on demand."""

    def __init__(self, path: Path, columns: Columns, problems: list[RowProblem]):
        self.path = path
        self.widths: NDArray[np.int64] = columns["width"]
        self.heights: NDArray[np.int64] = columns["height"]
        self.loss_weights: NDArray[np.float32] = columns["loss_weight"]
        self.lines: NDArray[np.int64] = columns["line"]
        self.caption_chars: NDArray[np.int32] = columns["caption_chars"]
        self.num_references: NDArray[np.int32] = columns["num_references"]
        self.num_frames: NDArray[np.int32] = columns["num_frames"]
        self.fps: NDArray[np.float32] = columns["fps"]
        self.problems = problems
        self._offsets: NDArray[np.int64] = columns["offset"]
        self._lengths: NDArray[np.int32] = columns["length"]
        # Read, not mapped, because mapped pages of a large file would count as memory of this process.
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> Row:
        """Row number `index` of the usable ones.

        Raises:
            DataError: the line has changed since the file was indexed.
        """
        line = int(self.lines[index])
        width, height, loss_weight = (
            column[index].item() for column in (self.widths, self.heights, self.loss_weights)
        )
        text = os.pread(self._file, int(self._lengths[index]), int(self._offsets[index]))
        row = parse(text)
        if isinstance(row, BadRow) or (row.width, row.height) != (width, height):
            raise self._changed(line)
        fields = row.fields
        caption, *more = captions_of(fields)
        return Row(
            index=index,
            line=line,
            filename=fields["filename"],
            caption=caption,
            width=width,
            height=height,
            is_tag_based=bool(fields.get("is_tag_based")),
            is_url_based=bool(fields.get("is_url_based")),
            loss_weight=loss_weight,
            more_captions=tuple(more),
            references=references_of(fields),
            start_s=float(fields.get("start_s") or 0),
            num_frames=row.num_frames,
            fps=row.fps,
        )

    def _changed(self, line: int) -> DataError:
        return DataError(f"{self.path}:{line}: the file has changed while in use. Start the run again.")


class JoinedMetadata:
    """The rows of several files in sequence."""

    def __init__(self, parts: Sequence[Metadata]):
        self.parts = tuple(parts)
        self.path = parts[0].path
        self.problems = [replace(p, dataset=i) for i, part in enumerate(parts) for p in part.problems]
        self.starts = [0, *np.cumsum([len(part) for part in parts]).tolist()]
        """Number of the first row of each file, then the number of all rows."""

    def __len__(self) -> int:
        return self.starts[-1]

    def row(self, index: int) -> Row:
        """Row number `index` of all rows; a negative number counts from the end."""
        index = range(len(self))[index]
        dataset = bisect_right(self.starts, index) - 1
        row = self.parts[dataset].row(index - self.starts[dataset])
        return replace(row, index=index, dataset=dataset)

    @property
    def widths(self) -> NDArray[np.int64]:
        """From the file, in pixels."""
        return self._column("widths")

    @property
    def heights(self) -> NDArray[np.int64]:
        """From the file, in pixels."""
        return self._column("heights")

    @property
    def loss_weights(self) -> NDArray[np.float32]:
        """0 to 1."""
        return self._column("loss_weights")

    @property
    def lines(self) -> NDArray[np.int64]:
        """Line numbers in the row's file, from 1."""
        return self._column("lines")

    @property
    def caption_chars(self) -> NDArray[np.int32]:
        """Length of the longest caption."""
        return self._column("caption_chars")

    @property
    def num_references(self) -> NDArray[np.int32]:
        """Images that the image was edited from."""
        return self._column("num_references")

    @property
    def num_frames(self) -> NDArray[np.int32]:
        """Frames of a clip, as in `Row`."""
        return self._column("num_frames")

    @property
    def fps(self) -> NDArray[np.float32]:
        """Frame rate that `num_frames` counts; 0: the run's."""
        return self._column("fps")

    def _column(self, name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in self.parts])


def read_metadata(path: Path) -> Metadata:
    """The rows of the JSONL file at `path`, with unusable lines in `.problems`.

    Raises:
        DataError: the file is missing or has no usable row.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file. Set dataloader.jsonl_metadata_path to the JSONL to train on.")
    with path.open("rb") as file:
        if file.read(2) in UTF16_MARKS:
            raise DataError(f"{path}: the file is UTF-16. Run 'flowloom dataset build {path} -o NEW.jsonl'.")
    columns, problems = read_columns(path)
    if not len(columns["line"]):
        first = f" Line {problems[0].line}: {problems[0].reason}." if problems else ""
        raise DataError(f"{path}: no usable row.{first}")
    return Metadata(path, columns, problems)


def check_skipped(path: Path, skipped: dict[str, str], num_rows: int, limit: float) -> None:
    """Raise if more than the share `limit` of `num_rows` rows cannot be used.

    Args:
        skipped: reason by `file:line`.

    Raises:
        DataError: with the first of them.
    """
    if len(skipped) <= limit * num_rows:
        return
    listed = "".join(f"\n  {where}: {reason}" for where, reason in list(skipped.items())[:EXAMPLES])
    more = f"\n  ... and {len(skipped) - EXAMPLES} more" if len(skipped) > EXAMPLES else ""
    raise DataError(
        f"{path}: {len(skipped)} of {num_rows} rows cannot be used, more than limits.skipped_percentage "
        f"{limit:g} allows. Fix or remove them, or raise the limit.{listed}{more}"
    )
