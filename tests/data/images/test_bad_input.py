"""For any bytes, unusable data is reported with its place, and nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flowloom.data.images.decode import load_alpha, load_image
from flowloom.data.images.headers import NeedMore, image_size
from flowloom.data.metadata import read_metadata
from flowloom.errors import DataError, ImageError
from tests.fakes.images import JXL_RED, encoded, photo, turned
from tests.fakes.profiles import cmyk_profile, grey_profile

# Pillow warns of what it puts up with.
pytestmark = pytest.mark.filterwarnings("ignore:::PIL")
SIZE = (24, 16)
FOUND = Path(__file__).parent / "found"
"""Files that once caused a traceback."""


def whole() -> dict[str, bytes]:
    """A small image of every kind, with as many of its optional parts as fit."""
    colours = photo(5, 40, 30)
    grey = colours.convert("L")
    alpha = colours.convert("RGBA")
    alpha.putalpha(grey)
    return {
        "jpeg": turned("JPEG", 6),
        "progressive": encoded(colours, "JPEG", progressive=True, icc_profile=grey_profile(1.0)),
        "cmyk": encoded(colours.convert("CMYK"), "JPEG", icc_profile=cmyk_profile(20.0)),
        "png": encoded(alpha, "PNG", icc_profile=grey_profile(1.0)),
        "palette": encoded(colours.convert("P"), "PNG", transparency=3),
        "apng": encoded(colours, "PNG", save_all=True, append_images=[grey.convert("RGB")]),
        "gif": encoded(colours.convert("P"), "GIF", save_all=True, append_images=[grey.convert("P")]),
        "webp": turned("WEBP", 8),
        "webp-lossless": encoded(alpha, "WEBP", lossless=True),
        "avif": turned("AVIF", 5),
        "tiff": encoded(colours, "TIFF"),
        "tiff-lzw": encoded(colours, "TIFF", compression="tiff_lzw"),
        "tiff-float": encoded(grey.convert("F"), "TIFF"),
        "bmp": encoded(colours, "BMP"),
        "bmp-palette": encoded(colours.convert("P"), "BMP"),
        "jpeg2000": encoded(colours, "JPEG2000"),
        "ppm": encoded(colours, "PPM"),
        "qoi": encoded(colours, "QOI"),
        "jxl": JXL_RED,
        "jxl-box": (Path(__file__).parent / "sideways.jxl").read_bytes(),
    }


WHOLE = whole()


def read(data: bytes) -> np.ndarray | None:
    """The pixels, or None where the reader says that there are none."""
    try:
        pixels = load_image(data, SIZE, (255, 255, 255), max_megapixels=0.1)
    except ImageError:
        return None
    assert pixels.shape == (SIZE[1], SIZE[0], 3)
    assert pixels.dtype == np.uint8
    assert load_alpha(data, SIZE, max_megapixels=0.1).shape == SIZE[::-1]
    return pixels


@pytest.mark.parametrize("kind", WHOLE)
def test_every_kind_is_read_completely(kind: str) -> None:
    if kind != "tiff-float":  # its levels go beyond white
        assert read(WHOLE[kind]) is not None


@pytest.mark.parametrize("path", sorted(FOUND.glob("*")), ids=lambda path: path.name)
def test_earlier_findings_are_still_read_or_reported(path: Path) -> None:
    read(path.read_bytes())


@pytest.mark.parametrize("kind", WHOLE)
def test_an_image_that_is_cut_short_is_an_error_or_complete(kind: str) -> None:
    """The missing part may be metadata; missing pixels are never generated."""
    data = WHOLE[kind]
    expected = read(data)
    for length in range(0, len(data), max(1, len(data) // 60)):
        pixels = read(data[:length])
        if pixels is not None and expected is not None:
            np.testing.assert_array_equal(pixels, expected)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image with some bytes changed, most of them in its head."""
    data = bytearray(WHOLE[draw(st.sampled_from(sorted(WHOLE)))])
    for _ in range(draw(st.integers(1, 6))):
        end = min(len(data), draw(st.sampled_from([64, 512, len(data)])))
        place = draw(st.integers(0, end - 1))
        fresh = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 4, bytes(4)])))
        if draw(st.booleans()):
            data[place : place + len(fresh)] = fresh
        else:
            data[place:place] = fresh
    return bytes(data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_damaged_images_are_read_or_reported(data: bytes) -> None:
    read(data)


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """The beginning of one image and the end of another."""
    one, other = (WHOLE[draw(st.sampled_from(sorted(WHOLE)))] for _ in range(2))
    return one[: draw(st.integers(0, len(one)))] + other[draw(st.integers(0, len(other))) :]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spliced())
def test_halves_of_two_images_are_read_or_reported(data: bytes) -> None:
    read(data)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(bytes.__add__, st.sampled_from([d[:16] for d in WHOLE.values()]), st.binary(max_size=300)),
    )
)
def test_nonsense_has_no_size_or_a_sane_one(data: bytes) -> None:
    more = 2**70
    try:
        width, height = image_size(data)
    except NeedMore as error:
        more = error.length
    except ImageError:
        pass
    else:
        assert width > 0
        assert height > 0
    assert more > len(data), "what is asked for is more than what there was"


@settings(max_examples=200, deadline=None)
@given(damaged(), st.integers(0, 2000))
def test_the_size_from_a_head_is_the_size_from_the_file(data: bytes, length: int) -> None:
    """Or more bytes are requested; a wrong size is never returned."""
    try:
        size = image_size(data[:length])
    except ImageError:
        return
    assert size == image_size(data)


FIELDS = ("filename", "caption_or_tags", "width", "height", "loss_weight", "is_tag_based", "is_url_based")
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.integers(1, 4000),
        st.floats(),
        st.text(max_size=12),
        st.sampled_from(["", "a.png", "\ud800", "\0", "NaN"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of a JSONL: good, nearly good, or nothing of the kind."""
    row: dict[str, Any] = {"filename": "a.png", "caption_or_tags": "a cat", "width": 64, "height": 48}
    how = draw(st.sampled_from(["good", "field", "bytes", "nonsense"]))
    if how == "nonsense":
        return draw(st.binary(max_size=40)).replace(b"\n", b"")
    row["caption_or_tags"] = draw(st.text(max_size=20))
    if how == "field":
        row[draw(st.sampled_from(FIELDS))] = draw(VALUES)
    text = json.dumps(row, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")
    if how == "bytes":
        place = draw(st.integers(0, len(text)))
        return (
            text[:place]
            + draw(st.binary(max_size=4)).replace(b"\n", b"")
            + text[place + draw(st.integers(0, 3)) :]
        )
    return text


def check(path: Path, given_lines: list[bytes]) -> None:
    """Each line is a row with its own caption, or a problem with its number, or blank."""
    path.write_bytes(b"\n".join(given_lines))
    try:
        metadata = read_metadata(path)
    except DataError:  # no usable row
        return
    bad_lines = {problem.line for problem in metadata.problems}
    assert all(problem.reason for problem in metadata.problems)
    rows = [metadata.row(index) for index in range(len(metadata))]
    assert not bad_lines & {row.line for row in rows}
    for number, line in enumerate(given_lines, start=1):
        if number not in bad_lines and line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip():
            (row,) = [row for row in rows if row.line == number]
            fields = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            captions = fields["caption_or_tags"]
            captions = captions if isinstance(captions, list) else [captions]
            assert (row.filename, [row.caption, *row.more_captions]) == (fields["filename"], captions)
            assert (type(row.is_tag_based), type(row.is_url_based)) == (bool, bool)
            assert (row.width, row.height) == (fields["width"], fields["height"])
            assert 0 <= row.loss_weight <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_lines=st.lists(lines(), max_size=6))
@example(given_lines=[])
@example(given_lines=[b"\xef\xbb\xbf"])
@example(given_lines=[b"null", b"[[[[", b"1e999"])
@example(given_lines=[b'{"filename":"a","caption_or_tags":"b","width":1e400,"height":1}'])
@example(given_lines=[b"[" * 5000])
def test_a_jsonl_of_anything_pairs_no_caption_with_another_row(
    folder: Path, given_lines: list[bytes]
) -> None:
    check(folder / "data.jsonl", given_lines)
