"""The size of an image is read from its first bytes, as it will be shown."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowloom.data.images.decode import load_image
from flowloom.data.images.headers import NeedMore, image_size, read_header
from flowloom.errors import ImageError
from tests.fakes.images import JXL_RED, encoded, photo, turned

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI")
CORNER = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
"""Where the upper left corner of what is stored is shown: down, right."""
TURNED_KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_every_kind_is_read(kind: str) -> None:
    assert image_size(encoded(Image.new("RGB", (123, 45)), kind)) == (123, 45)


def test_variants_of_a_kind_are_read() -> None:
    image = Image.effect_noise((70, 30), 50).convert("RGB")
    assert image_size(encoded(image, "WEBP", lossless=True)) == (70, 30)
    assert image_size(encoded(image.convert("RGBA"), "WEBP")) == (70, 30)
    assert image_size(encoded(image, "JPEG", progressive=True, comment=b"\xff\xc0" * 200)) == (70, 30)
    assert image_size(encoded(image, "TIFF", big_tiff=True)) == (70, 30)
    assert image_size(encoded(image, "TIFF", compression="tiff_lzw")) == (70, 30)
    assert image_size(encoded(image, "JPEG2000", no_jp2=True)) == (70, 30)
    assert image_size(b"P6 # a\n#b\n 70\t30 #c\n255\n" + bytes(6300)) == (70, 30)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", "GIF", "PNG"])
def test_the_size_of_an_animation_is_its_first_frame_s(kind: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    assert image_size(encoded(frames[0], kind, save_all=True, append_images=frames[1:])) == (64, 48)


@pytest.mark.parametrize(("kind", "orientation"), list(itertools.product(TURNED_KINDS, range(1, 9))))
def test_the_size_and_the_pixels_stand_as_exif_says(kind: str, orientation: int) -> None:
    data = turned(kind, orientation)
    size = (60, 120) if orientation > 4 else (120, 60)
    assert image_size(data) == size
    shown = load_image(data, size, (9, 9, 9), max_megapixels=1)
    corners = {(0, 0): shown[4, 4], (0, 1): shown[4, -5], (1, 0): shown[-5, 4], (1, 1): shown[-5, -5]}
    black = [corner for corner, colour in corners.items() if colour.mean() < 40]
    assert black == [CORNER[orientation]]


def test_the_size_of_jpeg_xl_is_read() -> None:
    data = JXL_RED
    assert image_size(data) == (24, 24)
    assert image_size(data[:20]) == (24, 24)
    # 512 x 200 is none of the named ratios: both sides stand in the header.
    stream = "0" + "00" + f"{199:09b}"[::-1] + "000" + "00" + f"{511:09b}"[::-1] + "1"
    packed = int(stream[::-1], 2).to_bytes(8, "little")
    assert image_size(b"\xff\x0a" + packed + bytes(8)) == (512, 200)
    container = b"\x00\x00\x00\x0cJXL \r\n\x87\n" + b"\x00\x00\x00\x14ftypjxl \0\0\0\0jxl "
    box = (len(data) + 8).to_bytes(4, "big") + b"jxlc" + data
    assert image_size(container + box) == (24, 24)


@pytest.mark.parametrize("kind", [*KINDS, "JXL"])
def test_a_head_that_is_too_short_says_how_much_more_it_needs(kind: str) -> None:
    """A reader of ranges asks for that much, until it is enough."""
    data = JXL_RED if kind == "JXL" else encoded(photo(0, 90, 80), kind)
    lengths = [0]
    while (more := missing(data[: lengths[-1]])) is not None:
        lengths.append(more)
    assert lengths == sorted(set(lengths))
    assert image_size(data[: lengths[-1]]) == image_size(data)
    assert len(lengths) < 60
    if kind != "TIFF":
        assert lengths[-1] <= 1000


def missing(head: bytes) -> int | None:
    """Number of bytes needed to read further; None if `head` is enough."""
    try:
        image_size(head)
    except NeedMore as error:
        return error.length
    return None


def test_a_path_and_a_file_are_as_good_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(turned("WEBP", 6))
    with path.open("rb") as file:
        assert image_size(file) == image_size(path) == (60, 120)
    with pytest.raises(ImageError, match="No such file"):
        image_size(tmp_path / "none.png")


UNUSABLE = {
    "begins with": b"<html>404 not found</html>",
    "it ends within": b"",
    "0 x 5 pixels": b"qoif" + bytes(4) + b"\0\0\0\x05" + bytes(10),
    "without a frame": b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda" + bytes(20),
    "without a header": b"\x89PNG\r\n\x1a\n" + bytes(30),
    "without a size": b"P6 x y" + bytes(2000),
    "no box b'meta'|a box|ends": b"\0\0\0\x18ftypavif" + bytes(12) + b"\0\0\0\x02meta",
    "a WebP that begins": b"RIFF\x20\0\0\0WEBPxxxx" + bytes(20),
    "a TIFF directory of 65535 tags": b"II*\0\x08\0\0\0\xff\xff" + bytes(20),
    "at byte 18446744073709551615": b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(8),
    "a JPEG XL file without a codestream": b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x10jxlc" + bytes(8),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_an_image_without_a_size_is_an_error_with_a_reason(reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        image_size(UNUSABLE[reason])


def test_damaged_exif_leaves_the_image_unturned() -> None:
    data = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    assert read_header(data).shown == (40, 20)


def test_the_size_after_a_large_block_is_read_without_the_block(tmp_path: Path) -> None:
    data = encoded(Image.new("RGB", (40, 20)), "PNG", icc_profile=np.random.default_rng(0).bytes(300_000))

    class Counted(io.BytesIO):
        read_bytes = 0

        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            self.read_bytes += len(found)
            return found

    file = Counted(data)
    assert image_size(file) == (40, 20)
    assert file.read_bytes < 200
