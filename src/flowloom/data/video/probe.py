"""Facts of a video: its size when shown, the frames that can be read, colours, sound."""

from __future__ import annotations

from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.data.video.colour import FULL, HLG, PQ, range_of
from flowloom.data.video.container import Geometry, OpenVideo, opened
from flowloom.errors import ImageError

LOST_S = 0.2
"""A file whose end is missing by less is complete: headers round, and sound may be longer."""
UNEVEN_SHARE = 0.02
"""Share of frames with another duration from which a frame rate is variable."""


@dataclass(frozen=True)
class VideoInfo:
    """A video, from its header, its packets, its first frame and its last frames."""

    width: int
    """In square pixels, upright."""
    height: int
    fps: float
    """Average frame rate."""
    num_frames: int
    """Frames that can be read, counted at `fps` from the first one."""
    codec: str
    pixel_format: str
    is_hdr: bool
    is_full_range: bool
    is_variable: bool
    """The frames have different durations."""
    has_sound: bool
    lost_s: float
    """Time at the end that the header promises and that cannot be read."""

    @property
    def duration_s(self) -> float:
        """Length of the part that can be read."""
        return self.num_frames / self.fps


def probe(source: Path | RangedFile, max_megapixels: float) -> VideoInfo:
    """Read the facts of `source`: every packet is read, but only the first and last frames are decoded.

    Raises:
        ImageError: it is not a video, or no frame can be decoded.
        SourceError: its store cannot be read.
    """
    with opened(source, max_megapixels) as video:
        try:
            _, frame = next(video.frames(None))
        except StopIteration:
            raise ImageError("not readable as a video: it has no frames") from None
        geometry = Geometry.of(frame, video.stream)
        width, height = (max(round(side), 1) for side in geometry.upright(frame.width, frame.height))
        stated = _stated_seconds(video)
        times, last_key = _packet_times(video)
        if len(times) > 1:
            times = times[times <= _last_readable(video, times, last_key) + 1e-6]
        gaps = np.diff(times)
        usual = float(np.median(gaps)) if len(gaps) else 1 / video.rate
        uneven = np.abs(gaps - usual) > max(0.1 * usual, 0.002)
        # At a cut end some frames are missing between those that were stored earlier.
        is_variable = int(uneven.sum()) > max(UNEVEN_SHARE * len(gaps), 2)
        fps = video.rate
        if is_variable or not video.stream.average_rate:
            fps = len(gaps) / float(times[-1] - times[0]) if len(gaps) else fps
        end_s = float(times[-1]) + (usual if is_variable else 1 / fps)
        return VideoInfo(
            width=width,
            height=height,
            fps=fps,
            num_frames=max(int(end_s * fps + 0.5), 1),
            codec=video.stream.codec_context.name,
            pixel_format=frame.format.name,
            is_hdr=frame.color_trc in (PQ, HLG),
            is_full_range=range_of(frame) == FULL,
            is_variable=is_variable,
            has_sound=bool(video.container.streams.audio),
            lost_s=max(stated - end_s, 0.0) if stated - end_s > LOST_S else 0.0,
        )


def _stated_seconds(video: OpenVideo) -> float:
    """The length by the header; 0 if it gives none."""
    stream, container = video.stream, video.container
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1e6 if not container.streams.audio else 0.0


def _packet_times(video: OpenVideo) -> tuple[NDArray[np.float64], float]:
    """The times of all complete packets, sorted, and that of the last keyframe."""
    times, last_key = array("d"), 0.0
    video.rewind()
    for packet in video.packets():
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is None or packet.is_corrupt or not packet.size:
            continue
        time_s = float(stamp * packet.time_base) - video.origin_s
        if time_s > -1e-6:
            times.append(time_s)
        last_key = max(last_key, time_s) if packet.is_keyframe else last_key
    return np.sort(np.frombuffer(times)) if times else np.zeros(1), last_key


def _last_readable(video: OpenVideo, times: NDArray[np.float64], last_key: float) -> float:
    """The time of the last frame that can be decoded, from the last keyframe on."""
    last = float(times[times < last_key].max(initial=0.0))
    video.rewind()
    with suppress(ImageError):
        for time_s, _ in video.frames_from(last_key):
            last = max(last, time_s)
    return last
