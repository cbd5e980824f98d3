"""Decode an image file into the pixels of its bucket: sRGB, upright."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image, ImageChops
from pyvips import voperation

from flowloom.data.images import bmff
from flowloom.data.images.byte_reader import ByteReader, NeedMore
from flowloom.data.images.colour import flat, to_eight_bits, to_srgb
from flowloom.data.images.headers import Header, image_size, read_header
from flowloom.errors import ImageError

__all__ = ["NeedMore", "image_size", "load_alpha", "load_image", "load_whole"]

DRAFT_MARGIN = 1.25
"""A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is at least this many times the bucket's size."""
SURROUND = 4
"""Pixels of the result that are computed beyond each edge of the crop, then cut off."""
JXL_HINT = ".venv/bin/pip install pyjpegxl (it has builds for Linux on x86-64 and for macOS)"
TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda levels: levels,
    2: lambda levels: levels[:, ::-1],
    3: lambda levels: levels[::-1, ::-1],
    4: lambda levels: levels[::-1],
    5: lambda levels: levels.swapaxes(0, 1),
    6: lambda levels: levels.swapaxes(0, 1)[:, ::-1],
    7: lambda levels: levels[::-1, ::-1].swapaxes(0, 1),
    8: lambda levels: levels.swapaxes(0, 1)[::-1],
}
"""Function that turns an image upright, for each EXIF orientation."""
# Errors of decoders for damaged files; Pillow's Python decoders raise almost any.
BROKEN = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

# The run's limit is checked before each image is decoded; Pillow's is lower.
Image.MAX_IMAGE_PIXELS = None
# The loader decodes many images at once, each on one thread, and none twice.
voperation.concurrency_set(1)
voperation.cache_set_max(0)


def load_image(
    source: bytes | Path, size: tuple[int, int], background: tuple[int, int, int], max_megapixels: float
) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) of `source`, scaled by Lanczos to cover `size` = (w, h) and cropped at the centre.

    The first frame of animations, turned by EXIF orientation, converted to sRGB by the embedded profile, and
    composited over `background` in sRGB values, not in linear light.

    Raises:
        ImageError: the file is not an image, is damaged, or is larger than `max_megapixels`.
    """
    stored = _decode(source, size, max_megapixels)
    opaque = flat(to_eight_bits(stored.image), background)
    return to_srgb(_fit(opaque, stored, size), opaque.mode, opaque.info.get("icc_profile"))


def load_whole(
    source: bytes | Path,
    size_of: Callable[[int, int], tuple[int, int]],
    background: tuple[int, int, int],
    max_megapixels: float,
) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) of all of `source`, scaled to `size_of(width, height)`; else as `load_image`.

    Raises:
        ImageError: as `load_image`.
    """
    data = _content(source)
    header = read_header(data)
    size = size_of(*_turned((header.width, header.height), header.orientation))
    stored = _decode(data, size, max_megapixels)
    opaque = flat(to_eight_bits(stored.image), background)
    box = (0, 0, *stored.extent)
    fitted = np.asarray(opaque.resize(_turned(size, stored.orientation), Image.Resampling.LANCZOS, box))
    upright = np.ascontiguousarray(TURNS[stored.orientation](fitted))
    return to_srgb(upright, opaque.mode, opaque.info.get("icc_profile"))


def load_alpha(source: bytes | Path, size: tuple[int, int], max_megapixels: float) -> NDArray[np.uint8]:
    """The opacity (h, w) of `source`, 255 for opaque, cropped like `load_image`.

    Raises:
        ImageError: as `load_image`.
    """
    stored = _decode(source, size, max_megapixels)
    image = to_eight_bits(stored.image)
    if not image.has_transparency_data:
        return np.full(size[::-1], 255, dtype=np.uint8)
    return _fit(image.convert("RGBA").getchannel("A"), stored, size)


@dataclass(frozen=True)
class _Stored:
    """An image as stored in its file."""

    image: Image.Image
    extent: tuple[float, float]
    """Width and height in pixels; fractional for a reduced JPEG, whose last pixels are partly covered."""
    orientation: int
    """EXIF orientation that is still to be applied."""


def _decode(source: bytes | Path, size: tuple[int, int], max_megapixels: float) -> _Stored:
    """The first frame, of at least `size` unless it is smaller."""
    data = _content(source)
    header = read_header(data)
    _check_megapixels(header.width, header.height, max_megapixels)
    try:
        if header.kind == "JXL":
            image = _decode_jxl(data)
            return _Stored(image, image.size, 1)
        return _decode_by_pillow(data, header, size, max_megapixels)
    except BROKEN as error:
        raise ImageError(f"not readable as an image: {error or type(error).__name__}") from error


def _content(source: bytes | Path) -> bytes:
    try:
        return source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"not readable: {error}") from error


def _decode_by_pillow(data: bytes, header: Header, size: tuple[int, int], max_megapixels: float) -> _Stored:
    with Image.open(io.BytesIO(data), formats=(header.kind,)) as image:
        _check_megapixels(*image.size, max_megapixels)  # a GIF's frame may be larger than its screen
        extent: tuple[float, float] | None = None
        if header.kind == "JPEG":
            extent = _draft(image, _turned(size, header.orientation))
        image.load()
        # Pillow turns TIFFs upright itself.
        turn = 1 if header.kind == "TIFF" else header.orientation
        if header.kind == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
            # Pillow reads each CMYK JPEG as Adobe's, which are inverted.
            upright = ImageChops.invert(image)
            upright.info = dict(image.info)
            return _Stored(upright, extent or image.size, turn)
        return _Stored(image, extent or image.size, turn)


def _decode_jxl(data: bytes) -> Image.Image:
    """Decode with libjxl, which turns the image upright and provides its profile."""
    try:
        import pyjpegxl
    except ImportError as error:
        raise ImageError(f"JPEG XL needs a decoder: {JXL_HINT}") from error
    if data.startswith(b"\0"):  # with a box that ends beyond the file, the decoder would wait for a second
        for _ in bmff.boxes(ByteReader(io.BytesIO(data)), len(data)):
            pass
    info, levels = pyjpegxl.decode_to_numpy(data, dtype="uint8")
    image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    if info.icc:
        image.info["icc_profile"] = info.icc
    return image


def _check_megapixels(width: int, height: int, max_megapixels: float) -> None:
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise ImageError(
            f"{width} x {height} is {megapixels:.0f} megapixels; limits.max_megapixels is {max_megapixels:g}"
        )


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation > 4 else size


def _draft(image: Image.Image, size: tuple[int, int]) -> tuple[float, float] | None:
    """Decode a JPEG at a fraction of its size if that is enough; returns its width and height then."""
    spare = min(image.width / size[0], image.height / size[1]) / DRAFT_MARGIN
    for part in (8, 4, 2):
        if spare >= part:
            drafted = image.draft(None, (image.width // part, image.height // part))
            return drafted[1][2:] if drafted else None
    return None


def _fit(image: Image.Image, stored: _Stored, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Levels (h, w) or (h, w, c) of `image`, scaled to cover `size`, cropped at the centre, and upright."""
    wanted = _turned(size, stored.orientation)
    across, down = stored.extent
    shrink = min(across / wanted[0], down / wanted[1])
    if shrink > 1 + 1 / min(size) and stored.extent == image.size:
        fitted = _shrink(np.asarray(image), wanted, shrink)
    else:
        left, top = max(across - wanted[0] * shrink, 0) / 2, max(down - wanted[1] * shrink, 0) / 2
        box = (left, top, across - left, down - top)
        fitted = np.asarray(image.resize(wanted, Image.Resampling.LANCZOS, box))
    return np.ascontiguousarray(TURNS[stored.orientation](fitted))


def _shrink(levels: NDArray[np.uint8], size: tuple[int, int], shrink: float) -> NDArray[np.uint8]:
    """Same as Pillow's resize, by libvips in a quarter of the time."""
    height, width, bands = (*levels.shape, 1)[:3]
    columns, rows = _Cut.of(width, size[0], shrink), _Cut.of(height, size[1], shrink)
    image = pyvips.Image.new_from_memory(levels.data, width, height, bands, "uchar")
    image = image.crop(columns.start, rows.start, columns.length, rows.length)
    image = image.reduce(columns.shrink, rows.shrink, kernel="lanczos3")
    image = image.crop(columns.surround, rows.surround, *size)
    shape = (size[1], size[0], *levels.shape[2:])
    return np.frombuffer(image.write_to_memory(), dtype=np.uint8).reshape(shape)


@dataclass(frozen=True)
class _Cut:
    """Crop and scale of one side. libvips crops at whole pixels and scales about the centre, so the same
    number of pixels is cut off on the left and right."""

    start: int
    length: int
    """Pixels from `start`."""
    shrink: float
    surround: int
    """Pixels on either side of the result that are computed, then cut off."""

    @classmethod
    def of(cls, given: int, wanted: int, shrink: float) -> _Cut:
        """The middle of `given` pixels, reduced by `shrink` to `wanted` pixels."""
        surround = min(SURROUND, int((given / shrink - wanted) / 2))
        computed = wanted + 2 * surround
        start = max(round((given - computed * shrink) / 2), 0)
        length = given - 2 * start
        exact = shrink if int(length / shrink + 0.5) == computed else length / computed
        return cls(start, length, exact, surround)
