"""Colours of video frames as 8-bit sRGB: matrix and range, wide gamut, and tone mapping of HDR."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

PQ, HLG = 16, 18
"""Transfer functions SMPTE ST 2084 and ARIB STD-B67, as numbered by ITU-T H.273."""
BT2020 = 9
"""Primaries of wide gamut, as numbered by H.273; BT.709 and the older ones are close to sRGB."""
FULL, LIMITED = 2, 1
_FULL_RANGE_FORMATS = ("yuvj", "rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "pal8", "gray")
_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}
"""FFmpeg's number of a YUV matrix by its number in H.273."""
BT709_MATRIX, BT601_MATRIX = 1, 5
WHITE_NITS = 100.0
"""Luminance that HDR is scaled to before tone mapping: 1.0, the white of SDR."""
PEAK = 1000 / WHITE_NITS
"""Luminance that tone mapping maps to white."""
LINEAR_UP_TO = 0.3
"""Tone mapping keeps luminance up to here."""
SDR_GAMMA = 2.4
"""Of displays for SDR video, BT.1886."""
TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    np.float32,
)
"""Linear BT.2020 to linear BT.709 (ITU-R BT.2087)."""
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)


def matrix_of(frame: VideoFrame) -> int:
    """FFmpeg's number of the YUV matrix of `frame`; by its size, as in players, if the file gives none."""
    by_size = BT709_MATRIX if frame.width >= 1280 or frame.height > 576 else BT601_MATRIX
    return _MATRICES.get(int(frame.colorspace), by_size)


def range_of(frame: VideoFrame) -> int:
    """FULL if the levels of `frame` are 0 to 255, LIMITED if they are 16 to 235."""
    if frame.color_range in (FULL, LIMITED):
        return int(frame.color_range)
    return FULL if frame.format.name.startswith(_FULL_RANGE_FORMATS) else LIMITED


def needs_conversion(frame: VideoFrame) -> bool:
    """True if the RGB values of `frame` are not SDR with nearly the primaries of sRGB."""
    return frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020


def to_sdr(levels: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """(h, w, 3) 8-bit SDR of 16-bit R'G'B' `levels`.

    PQ and HLG are made linear, brought to BT.709 primaries, compressed by the Moebius curve up to 1,000 cd/m2
    with the largest of the three channels, so that hues stay, and encoded with gamma 2.4.
    """
    linear = _linear_table(transfer)[levels]
    if transfer == HLG:
        # The system gamma 1.2 of a display of 1,000 cd/m2 (BT.2100).
        luminance = np.maximum(linear @ _BT2020_LUMINANCE, 1e-6)
        linear *= (PEAK * luminance**0.2)[..., None]
    if primaries == BT2020:
        linear = linear @ TO_BT709.T
    if transfer in (PQ, HLG):
        signal = np.maximum(linear.max(axis=2, keepdims=True), 1e-6)
        linear *= _compressed(signal) / signal
    encoded = np.clip(linear, 0, 1) ** np.float32(1 / SDR_GAMMA)
    return (encoded * 255 + 0.5).astype(np.uint8)


@cache
def _linear_table(transfer: int) -> NDArray[np.float32]:
    """Linear light of each 16-bit level; 1 is the white of SDR, for HLG the maximum of the scene."""
    signal = np.arange(65536) / 65535
    if transfer == PQ:
        power = signal ** (32 / 2523)
        fraction = np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)
        return (fraction ** (8192 / 1305) * 10000 / WHITE_NITS).astype(np.float32)
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    return (signal**SDR_GAMMA).astype(np.float32)


def _compressed(signal: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Moebius curve: the identity up to LINEAR_UP_TO, then smoothly to 1 at PEAK."""
    knee = LINEAR_UP_TO
    a = -knee * knee * (PEAK - 1) / (knee * knee - 2 * knee + PEAK)
    b = (knee * knee - 2 * knee * PEAK + PEAK) / max(PEAK - 1, 1e-6)
    scale = (b * b + 2 * b * knee + knee * knee) / (b - a)
    return np.where(signal <= knee, signal, scale * (signal + a) / (signal + b)).astype(np.float32)
