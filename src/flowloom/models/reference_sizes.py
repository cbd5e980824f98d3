"""Sizes of reference images, as models that edit were trained with them."""

from __future__ import annotations

import math


def with_pixels(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with as many pixels as a square of `side`, in multiples of 32; the shape is kept.

    As in diffusers' QwenImageEditPlusPipeline.
    """
    across = math.sqrt(side * side * width / height)
    return tuple(max(32, round(length / 32) * 32) for length in (across, across * height / width))  # pyright: ignore[reportReturnType]


def within_pixels(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height with at most as many pixels as a square of `side`, in multiples of 16.

    As in diffusers' Flux2KleinPipeline: smaller images keep their size.
    """
    shrink = min(1.0, math.sqrt(side * side / (width * height)))
    return max(16, int(width * shrink) // 16 * 16), max(16, int(height * shrink) // 16 * 16)
