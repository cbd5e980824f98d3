"""An image file to the pixels of its bucket, in sRGB, upright, whatever it was before."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from flowloom.errors import ImageError

DRAFT_MARGIN = 2.0
"""A JPEG is decoded at a fraction of its size only while that stays so many times the bucket's."""
JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
"""How JPEG XL files begin: the bare stream, and the container."""
JXL_CURE = ".venv/bin/pip install pillow-jxl-plugin"
"""Not among the dependencies: the plugin is under the GPL, Flowloom under Apache-2.0."""
# RuntimeError is what the JPEG XL plugin raises.
_BROKEN = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    EOFError,
)


def load_image(
    source: bytes | Path, size: tuple[int, int], background: tuple[int, int, int], max_megapixels: float
) -> NDArray[np.uint8]:
    """Pixels (h, w, 3) of `source`, scaled by Lanczos to cover `size` = (w, h) and cropped at the centre.

    The first frame of animations, turned as EXIF says, transparency over `background`, colours brought to
    sRGB by the embedded profile.

    Raises:
        ImageError: the file is no picture, is damaged, or is larger than `max_megapixels`.
    """
    try:
        with _open(source) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels > max_megapixels:
                raise ImageError(
                    f"{image.width} x {image.height} is {megapixels:.0f} megapixels; "
                    f"limits.max_megapixels is {max_megapixels:g}"
                )
            _draft(image, size)
            image.load()
            picture = to_srgb(ImageOps.exif_transpose(image), background)
    except _BROKEN as error:
        raise ImageError(f"not readable as a picture: {error}") from error
    return np.asarray(ImageOps.fit(picture, size, Image.Resampling.LANCZOS))


def _open(source: bytes | Path) -> Image.Image:
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        is_jxl = file.read(12).startswith(JXL)
    if is_jxl:
        try:
            import pillow_jxl  # pyright: ignore[reportMissingImports]  # noqa: F401 -- importing it teaches Pillow the format
        except ImportError as error:
            raise ImageError(f"JPEG XL needs a decoder: {JXL_CURE}") from error
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _draft(image: Image.Image, size: tuple[int, int]) -> None:
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        longest = int(max(size) * DRAFT_MARGIN)
        image.draft(None, (longest, longest))


def to_srgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """`image` as 8-bit RGB in sRGB, over `background` where it is transparent."""
    image = _to_eight_bits(image)
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if profile:
        image = _by_profile(image.convert("RGB") if alpha else image, profile)
    image = image.convert("RGB")
    if alpha is None:
        return image
    return Image.composite(image, Image.new("RGB", image.size, background), alpha)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled, not clipped, to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        top = 1.0 if image.mode == "F" and levels.max(initial=0) <= 1 else 65535.0
        eight = Image.fromarray((levels / top * 255).round().clip(0, 255).astype(np.uint8))
        return eight
    return image


def _by_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        # A profile for another kind of colours than the image has: browsers ignore it, too.
        return image


def load_alpha(source: bytes | Path, size: tuple[int, int], max_megapixels: float) -> NDArray[np.uint8]:
    """How opaque each pixel (h, w) of `source` is, scaled and cropped as `load_image` does; 255: wholly.

    Raises:
        ImageError: the file is no picture, is damaged, or is larger than `max_megapixels`.
    """
    try:
        with _open(source) as image:
            if image.width * image.height / 1e6 > max_megapixels:
                raise ImageError(
                    f"{image.width} x {image.height}: limits.max_megapixels is {max_megapixels:g}"
                )
            picture = ImageOps.exif_transpose(image)
            alpha = picture.convert("RGBA").getchannel("A")
    except _BROKEN as error:
        raise ImageError(f"not readable as a picture: {error}") from error
    return np.asarray(ImageOps.fit(alpha, size, Image.Resampling.LANCZOS))
