"""Convert images of any colour space to 8-bit sRGB."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from flowloom.errors import ImageError

MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""Pillow's mode for the colour space of a profile."""
KEPT_PROFILES = 16
_PROFILE_ERRORS = (ImageCms.PyCMSError, OSError, ValueError)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey and floats from 0 to 1 scaled to 8 bits; other images unchanged.

    Raises:
        ImageError: there are levels above white or below black, whose meaning is unknown.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    levels = np.asarray(image)
    white = 1.0 if image.mode == "F" else 65535.0
    if not ((levels >= 0) & (levels <= white)).all():
        raise ImageError(f"levels from {levels.min():g} to {levels.max():g}; they must be 0 to {white:g}")
    eight = Image.fromarray((levels * np.float32(255 / white)).round().astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):  # the level that is transparent
        alpha = Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8))
        eight = Image.merge("LA", (eight, alpha))
    if profile := image.info.get("icc_profile"):
        eight.info["icc_profile"] = profile
    return eight


def flat(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """`image` as grey, RGB, CMYK or LAB; if it has transparency, as sRGB over `background`."""
    if image.has_transparency_data:
        both = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        colours, alpha = both.convert(both.mode[:-1]), both.getchannel("A")
        opaque = Image.fromarray(to_srgb(np.asarray(colours), colours.mode, image.info.get("icc_profile")))
        return Image.composite(opaque, Image.new("RGB", image.size, background), alpha)
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    plain = image.convert("L" if image.mode == "1" else "RGB")
    plain.info = dict(image.info)
    return plain


def to_srgb(levels: NDArray[np.uint8], mode: str, profile: bytes | None) -> NDArray[np.uint8]:
    """Levels (h, w) or (h, w, c) of Pillow's `mode` as sRGB (h, w, 3).

    Without a `profile`, grey is sRGB's, and CMYK is converted by Pillow's rule.
    """
    transform = _transform(profile or b"", mode)
    if transform is not None:
        if transform.input_mode == "RGB" and mode == "L":
            levels, mode = np.repeat(levels[..., None], 3, axis=2), "RGB"
        size = levels.shape[1::-1]
        image = Image.frombuffer(mode, size, np.ascontiguousarray(levels), "raw", mode, 0, 1)
        return np.asarray(transform.apply(image))
    if mode == "L":
        return np.repeat(levels[..., None], 3, axis=2)
    if mode == "CMYK":
        size = levels.shape[1::-1]
        return np.asarray(
            Image.frombuffer(mode, size, np.ascontiguousarray(levels), "raw", mode, 0, 1).convert("RGB")
        )
    return levels


@lru_cache(KEPT_PROFILES)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From `profile` to sRGB; None if the profile is damaged or does not fit `mode`, as in browsers."""
    try:
        opened: Any
        if mode == "LAB":
            opened = cast("Any", ImageCms.createProfile("LAB"))
        elif profile:
            opened = ImageCms.core.profile_frombytes(profile)
        else:
            return None
        source = ImageCms.ImageCmsProfile(opened)
        profile_mode = MODE_OF_SPACE.get(opened.xcolor_space.strip(), "")
        if profile_mode != mode and (profile_mode, mode) != ("RGB", "L"):
            return None
        srgb = cast("Any", ImageCms.createProfile("sRGB"))
        return ImageCms.buildTransform(source, srgb, profile_mode, "RGB")
    except _PROFILE_ERRORS:
        return None
