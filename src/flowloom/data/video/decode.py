"""Read a clip of a video: a constant frame rate, upright, SDR, cropped to its bucket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowloom.data.buckets import Bucket
from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.data.video.colour import (
    BT709_MATRIX,
    FULL,
    matrix_of,
    needs_conversion,
    range_of,
    to_sdr,
)
from flowloom.data.video.container import Geometry, OpenVideo, check_megapixels, opened
from flowloom.errors import ImageError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

CLIP_RULE = "nearest frame, cover, centre, area or Lanczos, Moebius, FFmpeg 8; 1"
"""The rule of this module; its number is incremented when the pixels change."""
EXACT = 0x2000 | 0x4000 | 0x40000
"""Scaling with all colour samples and exact rounding, as FFmpeg numbers it."""
LANCZOS, AREA = 0x200 | EXACT, 0x20 | EXACT
AREA_FROM = 2.0
"""Frames that shrink by at least this factor are averaged by area: in half the time of Lanczos."""


class Clip(NamedTuple):
    """The part of a video to read."""

    start_s: float
    """After the first frame."""
    fps: float
    """Frame rate of the result."""


def load_clip(
    source: Path | RangedFile, clip: Clip, bucket: Bucket, max_megapixels: float
) -> NDArray[np.uint8]:
    """Frames (f, h, w, 3) of `source`, scaled to cover `bucket` and cropped at the centre.

    Each frame of the result is the last one of the video whose time, rounded to the result's frames, is not
    later. Only the frames from the keyframe before `clip` are decoded, and only those of the result are
    converted.

    Raises:
        ImageError: the file is not a video, is damaged within the clip, too short, or larger than
            `max_megapixels`.
        SourceError: its store cannot be read.
    """
    pixels = np.empty((bucket.num_frames, bucket.height, bucket.width, 3), np.uint8)
    with opened(source, max_megapixels) as video:
        converter = _Converter(video, bucket, max_megapixels)
        video = replace(video, slot_of=partial(slot_of, clip=clip))
        done = 0
        for frame, stop in _resampled(video, clip, bucket.num_frames):
            if stop > done:
                pixels[done] = converter.convert(frame)
                pixels[done + 1 : stop] = pixels[done]
                done = stop
        if done < bucket.num_frames:
            raise ImageError(
                f"has {done} frames at {clip.fps:g} frames/s from {clip.start_s:g} s on; "
                f"{bucket.num_frames} are needed"
            )
    return pixels


def _resampled(video: OpenVideo, clip: Clip, num_frames: int) -> Iterator[tuple[VideoFrame, int]]:
    """Frames of `video` and the number of the result's frame before which each is the last one."""
    held: VideoFrame | None = None
    end_s, damage = 0.0, list[ImageError]()
    for time_s, frame in _until_damaged(video.frames_from(clip.start_s), damage):
        slot = slot_of(time_s, clip)
        if held is not None and slot > 0:
            yield held, min(slot, num_frames)
        if slot >= num_frames and held is not None:
            return
        held, end_s = frame, time_s + _duration(video, frame)
    stop = min(slot_of(end_s, clip), num_frames)
    if held is not None:
        yield held, stop
    if damage and (held is None or stop < num_frames):
        raise damage[0]


def _until_damaged(
    frames: Iterator[tuple[float, VideoFrame]], damage: list[ImageError]
) -> Iterator[tuple[float, VideoFrame]]:
    """`frames` up to the damaged part of the file, whose error is added to `damage`."""
    try:
        yield from frames
    except ImageError as error:
        damage.append(error)


def slot_of(time_s: float, clip: Clip) -> int:
    """Number of the result's frame that is nearest to a time of the video; 0 before the clip."""
    return max(int(np.floor((time_s - clip.start_s) * clip.fps + 0.5 + 1e-4)), 0)


def _duration(video: OpenVideo, frame: VideoFrame) -> float:
    stated = float(frame.duration * (frame.time_base or 0)) if frame.duration else 0.0
    return stated if 0 < stated < 10 else 1 / video.rate


class _Converter:
    """Converts decoded frames to pixels of a bucket."""

    def __init__(self, video: OpenVideo, bucket: Bucket, max_megapixels: float):
        from av.video.reformatter import VideoReformatter

        self._video, self._bucket, self._max_megapixels = video, bucket, max_megapixels
        self._scaler: VideoReformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """(h, w, 3) of `frame`; it may differ in size and format from the one before."""
        check_megapixels(frame.width, frame.height, self._max_megapixels)
        geometry = Geometry.of(frame, self._video.stream)
        width, height = geometry.upright(frame.width, frame.height)
        wanted = self._bucket.size
        scale = max(wanted[0] / width, wanted[1] / height)
        scaled = [max(round(width * scale), wanted[0]), max(round(height * scale), wanted[1])]
        if geometry.quarter_turns % 2:
            scaled.reverse()
        is_wide = needs_conversion(frame)
        rgb = self._scaler.reformat(
            frame,
            *scaled,
            # FFmpeg writes separate planes in less than half the time, with the same levels.
            format="gbrp16le" if is_wide else "gbrp",
            src_colorspace=matrix_of(frame),
            dst_colorspace=BT709_MATRIX,
            interpolation=AREA if scale * AREA_FROM <= 1 else LANCZOS,
            src_color_range=range_of(frame),
            dst_color_range=FULL,
            threads=1,
        )
        levels = np.rot90(rgb.to_ndarray(), geometry.quarter_turns)
        left, top = (levels.shape[1] - wanted[0]) // 2, (levels.shape[0] - wanted[1]) // 2
        levels = levels[top : top + wanted[1], left : left + wanted[0]]
        if is_wide:
            return to_sdr(levels.astype(np.uint16), frame.color_trc, frame.color_primaries)
        return levels.astype(np.uint8, copy=False)
