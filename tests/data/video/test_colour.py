"""Colours of clips: matrix, range and wide gamut exact; HDR as FFmpeg's zscale and tonemap convert it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowloom.data.buckets import Bucket
from flowloom.data.video.decode import Clip, load_clip

av = pytest.importorskip("av", reason="needs av")

BT709, BT601, BT2020 = 1, 5, 9
LIMITED, FULL = 1, 2
SDR, WIDE, PQ, HLG = 1, 14, 16, 18
COLOURS = [(0.4, 0.4, 0.4), (0.1, 0.1, 0.1), (0.4, 0.08, 0.04), (0.08, 0.12, 0.4), (0.36, 0.24, 0.2)]


def decoded(
    path: Path, colours: Any, matrix: int, levels: int, transfer: int, primaries: int
) -> list[list[int]]:
    """`colours`, from 0 to 1, stored with these properties and read as a clip."""
    bars = np.repeat(np.array(colours), 16, axis=0)
    frame = (np.broadcast_to(bars, (32, *bars.shape)) * 65535 + 0.5).astype(np.uint16)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = frame.shape[1], 32, "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, primaries
        context.colorspace, context.color_range = {BT601: 6}.get(matrix, matrix), levels
        rgb = av.VideoFrame.from_ndarray(frame, format="rgb48le")
        stored = rgb.reformat(
            format="yuv444p10le", src_color_range=FULL, dst_colorspace=matrix, dst_color_range=levels,
            interpolation=0x40000 | 0x10,
        )  # fmt: skip
        stored.pts, stored.time_base = 0, Fraction(1, 10)
        container.mux(stream.encode(stored))
        container.mux(stream.encode())
    clip = load_clip(path, Clip(0, 10), Bucket(frame.shape[1], 32, 1), 10)
    return clip[0, 16, 8::16].tolist()


def differs_by(found: list[list[int]], expected: Any) -> int:
    return int(np.abs(np.array(found) - np.array(expected)).max())


@pytest.mark.parametrize("levels", [LIMITED, FULL])
@pytest.mark.parametrize("matrix", [BT709, BT601])
def test_matrix_and_range_are_those_of_the_file(tmp_path: Path, matrix: int, levels: int):
    colours = [
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        (0.98, 0.98, 0.98),
        (0.8, 0.1, 0.2),
        (0.1, 0.7, 0.3),
        (0.2, 0.2, 0.9),
    ]
    found = decoded(tmp_path / "bars.mkv", colours, matrix, levels, SDR, BT709)
    assert differs_by(found, np.array(colours) * 255) <= 2


# The references are from FFmpeg 5.1 with zimg:
# zscale=t=linear:npl=100,zscale=p=bt709,tonemap=mobius:param=0.3:desat=0:peak=10,zscale=t=bt709:r=full
def test_hdr_is_tone_mapped(tmp_path: Path):
    found = decoded(tmp_path / "pq.mkv", COLOURS, BT2020, LIMITED, PQ, BT2020)
    expected = [(159, 159, 159), (24, 24, 24), (188, 0, 0), (0, 23, 165), (158, 55, 49)]
    assert differs_by(found, expected) <= 3


def test_hybrid_log_gamma_is_tone_mapped(tmp_path: Path):
    found = decoded(tmp_path / "hlg.mkv", [(0.4,) * 3, (0.1,) * 3, (0.75,) * 3], BT2020, LIMITED, HLG, BT2020)
    assert differs_by(found, [(154,) * 3, (39,) * 3, (235,) * 3]) <= 2


def test_a_wide_gamut_is_converted(tmp_path: Path):
    found = decoded(tmp_path / "wide.mkv", COLOURS, BT2020, LIMITED, WIDE, BT2020)
    expected = [(102, 102, 102), (26, 26, 26), (126, 0, 0), (0, 30, 106), (106, 56, 49)]
    assert differs_by(found, expected) <= 2
