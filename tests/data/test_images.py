"""Every kind of picture file comes out right, or is named as unusable; none is trained wrong."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from flowloom.data.images import load_image
from flowloom.errors import ImageError

WHITE = (255, 255, 255)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(source: bytes | Path, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return load_image(source, size, WHITE, max_megapixels=100)


def colour(source: bytes) -> tuple[int, ...]:
    return tuple(int(v) for v in np.median(pixels(source).reshape(-1, 3), axis=0))


JXL_RED = "/wpFBgATiAIA6AC1nyAAABUqo4wbvJzr+fJDh8W0jesMbbVtYQljs70wSEg4Q9zNe1DNQwJwBAKwNyjADMUQTQEAlSQA"
"""24 x 24 pixels of the same red."""
RED = Image.new("RGB", (80, 80), (220, 30, 20))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_the_common_kinds_keep_their_colour(kind: str) -> None:
    np.testing.assert_allclose(colour(encoded(RED, kind)), (220, 30, 20), atol=6)


def test_jpeg_xl_is_read() -> None:
    """By the plugin where it is installed; otherwise the message says how to install it."""
    data = base64.b64decode(JXL_RED)
    if importlib.util.find_spec("pillow_jxl") is None:
        with pytest.raises(ImageError, match="pip install pillow-jxl-plugin"):
            pixels(data)
        return
    np.testing.assert_allclose(colour(data), (220, 30, 20), atol=6)
    with pytest.raises(ImageError):
        pixels(data[:40])


def test_cmyk_red_is_red() -> None:
    cmyk = Image.new("CMYK", (80, 80), (0, 255, 255, 0))
    red, green, blue = colour(encoded(cmyk, "JPEG"))
    assert red > 200
    assert max(green, blue) < 60


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((80, 80), 32768, np.uint16))
    np.testing.assert_allclose(colour(encoded(grey, "PNG")), (128, 128, 128), atol=1)


def test_transparency_shows_the_background_and_not_what_hides_behind_it() -> None:
    picture = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    assert colour(encoded(picture, "PNG")) == WHITE
    half = Image.new("RGBA", (80, 80), (0, 0, 0, 128))
    np.testing.assert_allclose(colour(encoded(half, "PNG")), (127, 127, 127), atol=2)
    palette = Image.new("P", (80, 80), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert colour(encoded(palette, "PNG", transparency=0)) == WHITE


def test_pictures_stand_upright_as_exif_says() -> None:
    picture = Image.new("RGB", (120, 60), "white")
    picture.paste("black", (0, 0, 60, 60))
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    shown = pixels(encoded(picture, "PNG", exif=exif), (32, 64))
    assert shown[:28].mean() < 10
    assert shown[36:].mean() > 245


def test_a_profile_is_brought_to_srgb() -> None:
    """The same numbers under a profile with swapped primaries mean other colours."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_allclose(colour(encoded(RED, "PNG", icc_profile=lab)), (220, 30, 20), atol=2)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (80, 80), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(colour(data), (255, 0, 0), atol=6)


def bomb() -> bytes:
    return encoded(Image.new("1", (20_000, 10_000)), "PNG")


UNUSABLE: dict[str, Callable[[], bytes]] = {
    "could be decompression bomb": bomb,
    "not readable as a picture": lambda: encoded(RED, "JPEG")[:400],
    "truncated": lambda: encoded(Image.effect_noise((300, 300), 90), "PNG")[:9000],
    "not readable": lambda: b"",
    "identify": lambda: b"<html>404</html>",
    "cannot": lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
}


@pytest.mark.parametrize("reason", UNUSABLE)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_whole_picture_is_named(reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        pixels(UNUSABLE[reason]())


def test_the_stated_limit_holds_before_anything_is_decoded() -> None:
    with pytest.raises(ImageError, match=r"80 x 80 is 0 megapixels; limits\.max_megapixels is 0\.001"):
        load_image(encoded(RED, "PNG"), (64, 64), WHITE, max_megapixels=0.001)


def test_pictures_are_scaled_to_cover_and_cropped_in_the_middle() -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("black", (100, 0, 200, 100))
    assert pixels(encoded(wide, "PNG"), (50, 50)).mean() < 3
    small = pixels(encoded(Image.new("RGB", (5, 9), "white"), "PNG"), (64, 48))
    assert small.shape == (48, 64, 3)
    assert small.min() == 255


def test_the_quick_way_for_large_jpegs_is_as_good() -> None:
    """40 dB or better against decoding all of it."""
    rows, columns = np.mgrid[0:900, 0:1200]
    waves = np.stack([np.sin(rows / 31) * np.cos(columns / 17), np.sin(columns / 53), np.cos(rows / 71)], -1)
    data = encoded(Image.fromarray((waves * 100 + 127).astype(np.uint8)), "JPEG", quality=92)
    with Image.open(io.BytesIO(data)) as image:
        whole = image.convert("RGB").crop((150, 0, 1050, 900)).resize((200, 200), Image.Resampling.LANCZOS)
    error = (pixels(data, (200, 200)).astype(float) - np.asarray(whole)).var()
    assert 10 * np.log10(255**2 / error) > 40
