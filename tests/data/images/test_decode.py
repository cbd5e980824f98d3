"""Every kind of image file is decoded correctly or reported as unusable."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from flowloom.data.images.decode import image_size, load_alpha, load_image
from flowloom.errors import ImageError
from tests.fakes.images import JXL_RED, ORIENTATION, encoded, photo
from tests.fakes.profiles import cmyk_profile, grey_profile, matrix_profile

WHITE = (255, 255, 255)
SIDEWAYS = (Path(__file__).parent / "sideways.jxl").read_bytes()


def pixels(source: bytes | Path, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    return load_image(source, size, WHITE, max_megapixels=100)


def colour(source: bytes) -> tuple[int, ...]:
    return tuple(int(v) for v in np.median(pixels(source).reshape(-1, 3), axis=0))


RED = Image.new("RGB", (80, 80), (220, 30, 20))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_the_common_kinds_keep_their_colour(kind: str) -> None:
    np.testing.assert_allclose(colour(encoded(RED, kind)), (220, 30, 20), atol=6)


def test_jpeg_xl_is_read_upright() -> None:
    np.testing.assert_allclose(colour(JXL_RED), (220, 30, 20), atol=6)
    # 48 x 24 as stored, its left half black, to be turned clockwise.
    shown = pixels(SIDEWAYS, (24, 48))
    assert image_size(SIDEWAYS) == (24, 48)
    assert shown[:20].max() < 10
    assert shown[-20:].min() > 245
    with pytest.raises(ImageError, match="Incomplete"):
        pixels(JXL_RED[:40])


def test_jpeg_xl_without_its_decoder_gives_a_hint(tmp_path: Path) -> None:
    """Where there is no build of it."""
    (tmp_path / "a.jxl").write_bytes(JXL_RED)
    code = (
        "import sys; sys.modules['pyjpegxl'] = None\n"
        "from flowloom.data.images.decode import load_image; from pathlib import Path\n"
        "load_image(Path(sys.argv[1]), (8, 8), (0, 0, 0), 1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.jxl")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ImageError: JPEG XL needs a decoder: .venv/bin/pip install pyjpegxl" in done.stderr


def test_cmyk_red_is_red() -> None:
    cmyk = Image.new("CMYK", (80, 80), (0, 255, 255, 0))
    red, green, blue = colour(encoded(cmyk, "JPEG"))
    assert red > 200
    assert max(green, blue) < 60


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((80, 80), 32768, np.uint16))
    np.testing.assert_allclose(colour(encoded(grey, "PNG")), (128, 128, 128), atol=1)


def test_transparency_shows_the_background_and_not_what_hides_behind_it() -> None:
    image = Image.new("RGBA", (80, 80), (255, 0, 0, 0))
    assert colour(encoded(image, "PNG")) == WHITE
    half = Image.new("RGBA", (80, 80), (0, 0, 0, 128))
    np.testing.assert_allclose(colour(encoded(half, "PNG")), (127, 127, 127), atol=2)
    palette = Image.new("P", (80, 80), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert colour(encoded(palette, "PNG", transparency=0)) == WHITE


def test_images_stand_upright_as_exif_says() -> None:
    image = Image.new("RGB", (120, 60), "white")
    image.paste("black", (0, 0, 60, 60))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    shown = pixels(encoded(image, "PNG", exif=exif), (32, 64))
    assert shown[:28].mean() < 10
    assert shown[36:].mean() > 245


def test_a_profile_is_brought_to_srgb() -> None:
    """The same levels under a profile with red and blue changed over are blue."""
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF"):
        data = encoded(RED, kind, icc_profile=matrix_profile(bgr=True))
        np.testing.assert_allclose(colour(data), (20, 30, 220), atol=8)
    assert colour(encoded(RED, "PNG", icc_profile=matrix_profile())) == pytest.approx((220, 30, 20), abs=2)


def test_a_profile_reaches_transparent_and_palette_images_too() -> None:
    profile = matrix_profile(bgr=True)
    half = RED.convert("RGBA")
    half.putalpha(128)
    expected = [0.5 * level + 0.5 * 255 for level in (20, 30, 220)]
    np.testing.assert_allclose(colour(encoded(half, "PNG", icc_profile=profile)), expected, atol=3)
    palette = RED.convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_allclose(colour(encoded(palette, "PNG", icc_profile=profile)), (20, 30, 220), atol=3)


def test_grey_takes_a_grey_profile_and_a_colour_profile() -> None:
    grey = Image.new("L", (80, 80), 128)
    linear = round(255 * ((0.5 ** (1 / 2.4)) * 1.055 - 0.055))
    data = encoded(grey, "PNG", icc_profile=grey_profile(gamma=1.0))
    np.testing.assert_allclose(colour(data), (linear,) * 3, atol=2)
    with_alpha = grey.convert("LA")
    np.testing.assert_allclose(
        colour(encoded(with_alpha, "PNG", icc_profile=grey_profile(gamma=1.0))), (linear,) * 3, atol=2
    )
    np.testing.assert_allclose(colour(encoded(grey, "PNG", icc_profile=matrix_profile())), (128,) * 3, atol=2)


def test_cmyk_takes_its_profile() -> None:
    """The profile says that the blackest ink is grey: half of it is lighter than without the profile."""
    black = Image.new("CMYK", (80, 80), (0, 0, 0, 128))
    for kind in ("JPEG", "TIFF"):
        np.testing.assert_allclose(colour(encoded(black, kind)), (127,) * 3, atol=3)
        data = encoded(black, kind, icc_profile=cmyk_profile(black=50.0))
        np.testing.assert_allclose(colour(data), (163,) * 3, atol=4)


def test_cmyk_jpegs_are_read_with_and_without_adobe_s_mark() -> None:
    """Adobe's are upside down, and say so; the others are not."""
    data = encoded(Image.new("CMYK", (80, 80), (0, 255, 255, 0)), "JPEG")
    mark = data.index(b"\xff\xee")
    length = int.from_bytes(data[mark + 2 : mark + 4], "big") + 2
    assert data[mark + 4 :].startswith(b"Adobe")
    cyan = data[:mark] + data[mark + length :]
    red, green, blue = colour(cyan)
    assert red < 60, "the opposite"
    assert min(green, blue) >= 0


@pytest.mark.parametrize("profile", [b"", b"nonsense" * 30, "grey", "cmyk"])
def test_a_profile_for_other_colours_is_left_out(profile: bytes | str) -> None:
    made = {"grey": grey_profile(1.0), "cmyk": cmyk_profile(50.0)}
    icc = made[profile] if isinstance(profile, str) else profile
    assert colour(encoded(RED, "PNG", icc_profile=icc)) == (220, 30, 20)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (80, 80), c) for c in ("red", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(colour(data), (255, 0, 0), atol=6)


def bomb() -> bytes:
    return encoded(Image.new("1", (20_000, 10_000)), "PNG")


UNUSABLE: dict[str, Callable[[], bytes]] = {
    "20000 x 10000 is 200 megapixels": bomb,
    "not readable as an image": lambda: encoded(RED, "JPEG")[:400],
    "truncated": lambda: encoded(photo(0, 300, 300), "JPEG")[:9000],
    "could not|not readable as": lambda: encoded(photo(0, 300, 300), "WEBP")[:6000],
    "not readable as an ima": lambda: encoded(photo(0, 300, 300), "AVIF")[:6000],
    "not readable as an im": lambda: encoded(photo(0, 300, 300), "TIFF")[:9000],
    "truncated|broken": lambda: encoded(photo(0, 300, 300), "PNG")[:9000],
    "not readable": lambda: b"",
    "begins with b'<html>": lambda: b"<html>404</html>",
    'begins with b"<svg': lambda: b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_incomplete_and_other_files_are_reported(reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        pixels(UNUSABLE[reason]())


def test_the_stated_limit_holds_before_anything_is_decoded() -> None:
    with pytest.raises(ImageError, match=r"80 x 80 is 0 megapixels; limits\.max_megapixels is 0\.001"):
        load_image(encoded(RED, "PNG"), (64, 64), WHITE, max_megapixels=0.001)


def test_images_are_scaled_to_cover_and_cropped_in_the_middle() -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("black", (100, 0, 200, 100))
    assert pixels(encoded(wide, "PNG"), (50, 50)).mean() < 3
    small = pixels(encoded(Image.new("RGB", (5, 9), "white"), "PNG"), (64, 48))
    assert small.shape == (48, 64, 3)
    assert small.min() == 255


def psnr(shown: np.ndarray, expected: np.ndarray) -> float:
    return 10 * np.log10(255**2 / (np.square(shown.astype(float) - expected).mean() + 1e-9))


def by_pillow(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """All of it decoded, then Lanczos."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS))


@pytest.mark.parametrize("size", [(576, 448), (448, 576), (512, 512), (320, 240), (333, 222), (64, 64)])
@pytest.mark.parametrize("given", [(1600, 1200), (1203, 1605), (700, 1111)])
def test_the_quick_way_for_jpegs_is_as_good(given: tuple[int, int], size: tuple[int, int]) -> None:
    """40 dB or better against decoding all of it."""
    data = encoded(photo(1, *given), "JPEG", quality=90)
    assert psnr(pixels(data, size), by_pillow(data, size)) > 40


@pytest.mark.parametrize("size", [(148, 96), (149, 97), (100, 64), (64, 101), (33, 17), (299, 199), (96, 96)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_scaling_is_pillow_s_lanczos_to_the_rounding(size: tuple[int, int], mode: str) -> None:
    image = photo(2, 300, 201).convert(mode)
    data = encoded(image, "PNG")
    assert psnr(pixels(data, size), by_pillow(data, size)) > 40


def test_opacity_is_cut_as_the_pixels_are() -> None:
    image = photo(3, 300, 200).convert("RGBA")
    alpha = image.convert("L").point(lambda level: 255 if level > 120 else 0)  # pyright: ignore[reportOperatorIssue]
    image.putalpha(alpha)
    exif = image.getexif()
    exif[ORIENTATION] = 6
    opacity = load_alpha(encoded(image, "PNG", exif=exif), (64, 80), max_megapixels=1)
    shown = pixels(encoded(alpha.convert("RGB"), "PNG", exif=exif), (64, 80))
    np.testing.assert_array_equal(opacity, shown[..., 0])
    assert load_alpha(encoded(RED, "JPEG"), (64, 80), max_megapixels=1).min() == 255
    with pytest.raises(ImageError):
        load_alpha(encoded(RED, "PNG")[:60], (64, 80), max_megapixels=1)


def test_one_level_may_stand_for_transparency() -> None:
    grey = Image.fromarray(np.full((80, 80), 500, np.uint16))
    assert colour(encoded(grey, "PNG", transparency=500)) == WHITE
    np.testing.assert_allclose(colour(encoded(grey, "PNG", transparency=501)), (2, 2, 2), atol=1)
    plain = Image.new("L", (80, 80), 7)
    assert colour(encoded(plain, "PNG", transparency=7)) == WHITE


def test_levels_beyond_white_are_named() -> None:
    bright = Image.fromarray(np.full((80, 80), 3.5, np.float32))
    with pytest.raises(ImageError, match=r"levels from 3\.5 to 3\.5; they must be 0 to 1"):
        pixels(encoded(bright, "TIFF"))
    half = Image.fromarray(np.full((80, 80), 0.5, np.float32))
    np.testing.assert_allclose(colour(encoded(half, "TIFF")), (128,) * 3, atol=1)


def test_a_missing_file_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        pixels(tmp_path / "none.png")
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RED, "PNG"))
    np.testing.assert_array_equal(pixels(path), pixels(path.read_bytes()))
