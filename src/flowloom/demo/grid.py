"""The demo's contact sheet: the measured prompts as a table, others below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

SCALE = 1.25
GAP, MARGIN = 10, 36
LABEL_HEIGHT = 20
INK, PALE, GROUND = "#222222", "#8a8a8a", "#ffffff"
LEAST_COLUMNS = 6
"""Leaves room for the headline."""
Asked = tuple[str, str, int]


def draw_grid(
    measured: Mapping[Asked, Image.Image], others: Sequence[tuple[str, Image.Image]], headline: str
) -> Image.Image:
    """A sheet with colours as columns and shapes as rows, one row of `others` after another below.

    Args:
        measured: images by (colour, shape, seed); those of the first seed are shown.
        others: prompts with their images.
        headline: one line of text above the rest.
    """
    first = min(seed for _, _, seed in measured)
    colours = list(dict.fromkeys(colour for colour, _, _ in measured))
    shapes = list(dict.fromkeys(shape for _, shape, _ in measured))
    side = round(next(iter(measured.values())).width * SCALE)
    step, columns = side + GAP, max(len(colours), LEAST_COLUMNS)
    other_rows = -(-len(others) // columns)
    width = 2 * MARGIN + columns * step - GAP + 50
    top = MARGIN + 2 * LABEL_HEIGHT + 8
    below = top + len(shapes) * step + 16
    sheet = Image.new("RGB", (width, below + other_rows * (step + LABEL_HEIGHT) + MARGIN // 2), GROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN // 2), headline, INK, ImageFont.load_default(15))
    label = ImageFont.load_default(12)
    left = MARGIN + 50
    for column, colour in enumerate(colours):
        x = left + column * step
        pen.text((x + side / 2, top - 6), colour, PALE, label, anchor="ms")
        for row, shape in enumerate(shapes):
            y = top + row * step
            sheet.paste(_scaled(measured[colour, shape, first], side), (x, y))
            if column == 0:
                pen.text((left - 12, y + side / 2), shape, PALE, label, anchor="rm")
    for i, (prompt, image) in enumerate(others):
        x, y = left + i % columns * step, below + i // columns * (step + LABEL_HEIGHT)
        sheet.paste(_scaled(image, side), (x, y))
        pen.text((x + side / 2, y + side + 12), prompt[:14], PALE, label, anchor="ms")
    return sheet


def _scaled(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.LANCZOS)
