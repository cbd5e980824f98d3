"""Aspect-ratio buckets by FLOW's rule, and the number of frames of clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

LEFT_OUT = -1
"""Bucket of a row whose aspect ratio is beyond the cutoff."""
CELLS_PER_UNIT = 4096
"""Cells per unit of aspect ratio; a power of two, so that the cell of a ratio is exact."""
_COMPARE = -2
Size = tuple[int, int]


class Bucket(NamedTuple):
    """The size that samples are cropped to."""

    width: int
    height: int
    num_frames: int = 1

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.width, self.height

    def __str__(self) -> str:
        frames = f"x{self.num_frames}" if self.num_frames > 1 else ""
        return f"{self.width}x{self.height}{frames}"


def make_buckets(base: int, step: int, cutoff: float) -> list[tuple[int, int]]:
    """The bucket sizes (width, height) around `base` x `base` pixels, widest first.

    Starting with the square, the height grows by `step`, and the width keeps the area, rounded down to
    `step`; sizes with a new width are used. The ratio is tested before each step, so the last size may exceed
    `cutoff`, as in FLOW.
    """
    x, y = base, base
    tall = [(x, y)]
    while y / x <= cutoff:
        y += step
        x = int(base * base / y // step * step)
        if x <= 0:
            break
        if x != tall[-1][0]:
            tall.append((x, y))
    return [(h, w) for w, h in reversed(tall[1:])] + tall


def assign(
    widths: NDArray[np.int64], heights: NDArray[np.int64], buckets: Sequence[tuple[int, int]], cutoff: float
) -> NDArray[np.int64]:
    """Number of the bucket of each image: the nearest in the plane of unit-area (width, height).

    A unit-area shape is a point (sqrt r, 1 / sqrt r) on a hyperbola. The nearer of two such points changes
    once along it, so the border between neighbours is one aspect ratio. Ties go to the first, wider bucket.

    Returns:
        (N,) int64; LEFT_OUT where cutoff > width / height > 1 / cutoff does not hold, strictly.
    """
    # One division, rounded once like Python's, because the comparisons are strict.
    ratios = np.divide(widths, heights, out=np.zeros(len(widths)), where=heights > 0)
    borders = _borders(buckets)
    # Most ratios are read from a table of cells; those in a cell with a border are compared.
    lows = cast("NDArray[np.float64]", np.arange(np.ceil(cutoff * CELLS_PER_UNIT) + 2) / CELLS_PER_UNIT)
    table = _compare(lows, borders, cutoff)
    highs = np.nextafter(lows + 1 / CELLS_PER_UNIT, 0)
    table[table != _compare(highs, borders, cutoff)] = _COMPARE
    assigned = table[np.minimum(ratios * CELLS_PER_UNIT, len(table) - 1).astype(np.intp)]
    undecided = np.flatnonzero(assigned == _COMPARE)
    assigned[undecided] = _compare(ratios[undecided], borders, cutoff)
    return assigned


def assign_frames(
    num_frames: NDArray[np.int32], fps: NDArray[np.float32], lengths: Sequence[int], rate: float
) -> NDArray[np.int64]:
    """Number of frames that each row is trained with: the most of `lengths` that its clip has at `rate`.

    Args:
        num_frames: (N,) frames of each clip; 0: an image; negative: unknown, taken to be enough.
        fps: (N,) frame rate that `num_frames` counts; 0: `rate`.

    Returns:
        (N,) int64; 1 for images; LEFT_OUT for clips shorter than all `lengths`.
    """
    choices = np.array(sorted(lengths), np.int64)
    own = np.where(fps > 0, fps, rate).astype(np.float64)
    # As data/video/decode.py counts them. The frame rate is rounded in the index.
    available = np.floor(num_frames * (rate / own) + 0.5 + 1e-4)
    fitting = np.searchsorted(choices, np.where(num_frames < 0, choices[-1], available), side="right") - 1
    return np.where(num_frames == 0, 1, np.where(fitting < 0, LEFT_OUT, choices[fitting]))


def _compare(ratios: NDArray[np.float64], borders: NDArray[np.float64], cutoff: float) -> NDArray[np.int64]:
    # Borders fall from wide to tall; a ratio on a border belongs to the wider side.
    assigned = len(borders) - np.searchsorted(borders[::-1], ratios, side="right")
    return np.where((ratios < cutoff) & (ratios > 1 / cutoff), assigned, LEFT_OUT)


def _borders(buckets: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """The aspect ratios between neighbouring buckets, descending.

    With a = sqrt r, the point (a, 1/a) is as far from (p, 1/p) as from (q, 1/q) where
    (a - p)^2 + (1/a - 1/p)^2 = (a - q)^2 + (1/a - 1/q)^2, a quadratic in a once cleared of fractions.
    """
    roots = np.array([np.sqrt(w / h) for w, h in buckets])
    p, q = roots[:-1], roots[1:]
    # 2 a (q - p) + (2 / a)(1/q - 1/p) = q^2 - p^2 + 1/q^2 - 1/p^2
    linear, inverse = 2 * (q - p), 2 * (1 / q - 1 / p)
    constant = q**2 - p**2 + 1 / q**2 - 1 / p**2
    a = (constant - np.sqrt(constant**2 - 4 * linear * inverse) * np.sign(linear)) / (2 * linear)
    b = (constant + np.sqrt(constant**2 - 4 * linear * inverse) * np.sign(linear)) / (2 * linear)
    return np.maximum(a, b) ** 2
