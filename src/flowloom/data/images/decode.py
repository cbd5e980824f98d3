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

__all__ = ["NeedMore", "image_size", "load_alpha", "load_image"]

DRAFT_MARGIN = 1.25
"""A JPEG is decoded at a half, quarter or eighth of its size while that stays so many times the bucket's."""
SURROUND = 4
"""Pixels of the result that are computed beyond each edge where the picture goes on, and cut off."""
JXL_CURE = ".venv/bin/pip install pyjpegxl (it has builds for Linux on x86-64 and for macOS)"
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
"""Upright, by EXIF orientation."""
# What decoders raise for damaged files; Pillow's own are programs in Python that trip over them.
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

# Every picture is held to the run's own limit before it is decoded; Pillow's lower one would win otherwise.
Image.MAX_IMAGE_PIXELS = None
# The loader reads many pictures at once, each on one thread, and none twice.
voperation.concurrency_set(1)
voperation.cache_set_max(0)


def load_image(
    source: bytes | Path, size: tuple[int, int], background: tuple[int, int, int], max_megapixels: float
) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) of `source`, scaled by Lanczos to cover `size` = (w, h) and cropped at the centre.

    The first frame of animations, turned as EXIF says, colours brought to sRGB by the embedded profile,
    transparency over `background` as Pillow composites it: in sRGB's own values, not in linear light.

    Raises:
        ImageError: the file is no picture, is damaged, or is larger than `max_megapixels`.
    """
    stored = _decode(source, size, max_megapixels)
    opaque = flat(to_eight_bits(stored.image), background)
    return to_srgb(_fit(opaque, stored, size), opaque.mode, opaque.info.get("icc_profile"))


def load_alpha(source: bytes | Path, size: tuple[int, int], max_megapixels: float) -> NDArray[np.uint8]:
    """The opacity (h, w) of `source`, 255 where nothing shines through, cropped as `load_image` does.

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
    """A picture as its file has it."""

    image: Image.Image
    extent: tuple[float, float]
    """Width and height in pixels: the last pixels of a fraction of a JPEG may be covered in part."""
    orientation: int
    """EXIF's: the turn that is still to be done."""


def _decode(source: bytes | Path, size: tuple[int, int], max_megapixels: float) -> _Stored:
    """The first frame, of at least `size` unless it is smaller."""
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise ImageError(f"not readable: {error}") from error
    header = read_header(data)
    _check_megapixels(header.width, header.height, max_megapixels)
    try:
        if header.kind == "JXL":
            image = _decode_jxl(data)
            return _Stored(image, image.size, 1)
        return _decode_by_pillow(data, header, size, max_megapixels)
    except BROKEN as error:
        raise ImageError(f"not readable as a picture: {error or type(error).__name__}") from error


def _decode_by_pillow(data: bytes, header: Header, size: tuple[int, int], max_megapixels: float) -> _Stored:
    with Image.open(io.BytesIO(data), formats=(header.kind,)) as image:
        _check_megapixels(*image.size, max_megapixels)  # a GIF's frame may be larger than its screen
        extent: tuple[float, float] | None = None
        if header.kind == "JPEG":
            extent = _draft(image, _turned(size, header.orientation))
        image.load()
        # Pillow turns TIFFs itself.
        turn = 1 if header.kind == "TIFF" else header.orientation
        if header.kind == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
            # Pillow takes every one as Adobe's, which are upside down.
            upright = ImageChops.invert(image)
            upright.info = dict(image.info)
            return _Stored(upright, extent or image.size, turn)
        return _Stored(image, extent or image.size, turn)


def _decode_jxl(data: bytes) -> Image.Image:
    """By libjxl, which turns it upright, and names or makes its profile."""
    try:
        import pyjpegxl
    except ImportError as error:
        raise ImageError(f"JPEG XL needs a decoder: {JXL_CURE}") from error
    if data.startswith(b"\0"):  # boxes: one that goes beyond the file has the decoder wait for a second
        for _ in bmff.boxes(ByteReader(io.BytesIO(data)), len(data)):
            pass
    about, levels = pyjpegxl.decode_to_numpy(data, dtype="uint8")
    image = Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    if about.icc:
        image.info["icc_profile"] = about.icc
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
    """Have a JPEG decoded at a fraction of its size, if that will do; its width and height then."""
    spare = min(image.width / size[0], image.height / size[1]) / DRAFT_MARGIN
    for part in (8, 4, 2):
        if spare >= part:
            drafted = image.draft(None, (image.width // part, image.height // part))
            return drafted[1][2:] if drafted else None
    return None


def _fit(image: Image.Image, stored: _Stored, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Levels (h, w) or (h, w, c) of `image` scaled to cover `size`, cropped at the centre, and turned as
    `stored` is to be."""
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
    """What Pillow does, by libvips, which takes a fourth of the time."""
    height, width, bands = (*levels.shape, 1)[:3]
    columns, rows = _Cut.of(width, size[0], shrink), _Cut.of(height, size[1], shrink)
    picture = pyvips.Image.new_from_memory(levels.data, width, height, bands, "uchar")
    picture = picture.crop(columns.start, rows.start, columns.taken, rows.taken)
    picture = picture.reduce(columns.shrink, rows.shrink, kernel="lanczos3")
    picture = picture.crop(columns.surround, rows.surround, *size)
    shape = (size[1], size[0], *levels.shape[2:])
    return np.frombuffer(picture.write_to_memory(), dtype=np.uint8).reshape(shape)


@dataclass(frozen=True)
class _Cut:
    """How one side is cut and scaled: libvips crops at whole pixels and scales about the centre, so as many
    are cut off on the left as on the right."""

    start: int
    taken: int
    """Pixels from `start` on."""
    shrink: float
    surround: int
    """Pixels of the result on either side that are computed for their neighbours only."""

    @classmethod
    def of(cls, given: int, wanted: int, shrink: float) -> _Cut:
        """The middle of `given` pixels to `wanted` of them, `shrink` times fewer."""
        surround = min(SURROUND, int((given / shrink - wanted) / 2))
        made = wanted + 2 * surround
        start = max(round((given - made * shrink) / 2), 0)
        taken = given - 2 * start
        exact = shrink if int(taken / shrink + 0.5) == made else taken / made
        return cls(start, taken, exact, surround)
