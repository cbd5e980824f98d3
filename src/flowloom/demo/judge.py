"""Detect the colour and shape in an image by geometry and arithmetic, without a model.

The judge finds the single figure on the white ground, compares its outline with those of OpenMoji's heart,
circle and square, and its filling with OpenMoji's colours. It returns None rather than guess.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from flowloom.demo.images import all_drawings, rasterise

WHITE_LEVEL = 225
"""Darker than this in any channel is not ground."""
MIN_AREA, MAX_AREA = 0.12, 0.85
"""Fraction of the image that the figure covers."""
MAX_STRAY = 0.08
"""Fraction of the figure's area that may be elsewhere, as specks."""
MIN_LIKENESS = 0.87
"""Intersection over union of the outlines, in one square box."""
MAX_STRETCH = 1.25
MAX_COLOUR_DISTANCE = 30.0
"""In CIE L*a*b*, from the filling to the nearest of the nine colours."""
EVEN_DISTANCE = 22.0
MIN_EVEN = 0.93
"""Share of the filling that must be within EVEN_DISTANCE of its median: a face is not a yellow circle."""
BOX = 48

_EXAMPLES = {"heart": "2764", "circle": "1F534", "square": "1F7E5"}
_PALETTE = {
    "red": ("2764", "1F534"),
    "orange": ("1F9E1", "1F7E0"),
    "yellow": ("1F49B", "1F7E1"),
    "green": ("1F49A", "1F7E2"),
    "blue": ("1F499", "1F535"),
    "purple": ("1F49C", "1F7E3"),
    "brown": ("1F90E", "1F7E4"),
    "black": ("1F5A4", "26AB"),
    "white": ("1F90D", "2B1C"),
}
Mask = NDArray[np.bool_]
measure: Any = ndimage
"""scipy's annotations say None where it returns arrays."""


class Verdict(NamedTuple):
    """The detected shape; None if uncertain."""

    colour: str | None
    shape: str | None


def judge(image: NDArray[np.uint8]) -> Verdict:
    """The colour and shape in an image, (h, w, 3) in sRGB."""
    figure = find_figure(image)
    if figure is None:
        return Verdict(None, None)
    return Verdict(_colour(image, figure), _shape(figure))


def find_figure(image: NDArray[np.uint8]) -> Mask | None:
    """The pixels of the single figure, including its inside; None if there is no such figure.

    The ground is white and connected with the border, so an outlined white figure counts as a figure.
    """
    ground = image.min(axis=2) >= WHITE_LEVEL
    labels, _ = measure.label(np.pad(ground, 1, constant_values=True))
    inside = labels[1:-1, 1:-1] != labels[0, 0]
    parts, count = measure.label(measure.binary_opening(inside, np.ones((2, 2))))
    if count == 0:
        return None
    areas = np.bincount(parts.ravel())[1:]
    largest = int(areas.max())
    is_one = areas.sum() - largest <= MAX_STRAY * largest
    if not is_one or not MIN_AREA <= largest / inside.size <= MAX_AREA:
        return None
    return measure.binary_fill_holes(parts == areas.argmax() + 1)


def _shape(figure: Mask) -> str | None:
    rows, columns = np.flatnonzero(figure.any(axis=1)), np.flatnonzero(figure.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    if max(height / width, width / height) > MAX_STRETCH:
        return None
    boxed = _boxed(figure)
    likeness = {
        shape: (boxed & template).sum() / (boxed | template).sum() for shape, template in _templates().items()
    }
    best = max(likeness, key=lambda shape: likeness[shape])
    return best if likeness[best] >= MIN_LIKENESS else None


def _boxed(figure: Mask) -> Mask:
    """The figure, cut out and scaled to BOX x BOX."""
    rows, columns = np.flatnonzero(figure.any(axis=1)), np.flatnonzero(figure.any(axis=0))
    cut = figure[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(cut.astype(np.uint8) * 255).resize((BOX, BOX), Image.Resampling.BILINEAR)
    return np.asarray(image) >= 128


def _colour(image: NDArray[np.uint8], figure: Mask) -> str | None:
    lab = to_lab(image[_filling(figure)])
    median = np.median(lab, axis=0)
    even = np.linalg.norm(lab - median, axis=1) <= EVEN_DISTANCE
    distances = {
        name: min(float(np.linalg.norm(median - shade)) for shade in shades)
        for name, shades in _palette().items()
    }
    best = min(distances, key=lambda name: distances[name])
    return best if distances[best] <= MAX_COLOUR_DISTANCE and even.mean() >= MIN_EVEN else None


def _filling(figure: Mask) -> Mask:
    """The figure without its outline."""
    depth = measure.distance_transform_edt(np.pad(figure, 1))[1:-1, 1:-1]
    return depth > 0.35 * depth.max()


def to_lab(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """CIE L*a*b* (D65) of sRGB pixels (N, 3)."""
    unit = rgb / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), axis=1)


@cache
def _templates() -> dict[str, Mask]:
    templates: dict[str, Mask] = {}
    for shape, code in _EXAMPLES.items():
        figure = find_figure(example(code, 128))
        assert figure is not None
        templates[shape] = _boxed(figure)
    return templates


@cache
def _palette() -> dict[str, list[NDArray[np.float64]]]:
    palette: dict[str, list[NDArray[np.float64]]] = {}
    for name, codes in _PALETTE.items():
        shades: list[NDArray[np.float64]] = []
        for code in codes:
            image = example(code, 128)
            figure = find_figure(image)
            assert figure is not None
            shades.append(np.median(to_lab(image[_filling(figure)]), axis=0))
        palette[name] = shades
    return palette


def example(code: str, size: int) -> NDArray[np.uint8]:
    """OpenMoji's image named `code`, (size, size, 3)."""
    svg = next(svg for svg in all_drawings() if svg.stem == code)
    with Image.open(io.BytesIO(rasterise(svg, size))) as opened:
        return np.asarray(opened.convert("RGB"))
