"""Findings about the videos of clips."""

from __future__ import annotations

from collections.abc import Iterator

from flowloom.data.metadata import Row
from flowloom.data.video.probe import VideoInfo

ROUNDING_S = 0.05
"""A clip may end so much after its video: frame rates and starts are rounded."""


def clip_findings(row: Row, video: VideoInfo) -> Iterator[tuple[str, str]]:
    """Kind and message of each finding about the clip of `row`, a part of `video`."""
    if row.num_frames > 0 and row.fps:
        end_s = row.start_s + row.num_frames / row.fps
        if end_s > video.duration_s + max(ROUNDING_S, 1 / video.fps):
            yield "clip_end", f"ends at {end_s:.2f} s, but {video.duration_s:.2f} s of the video can be read"
    if video.lost_s:
        yield "cut_video", f"the last {video.lost_s:.2f} s of the video cannot be read"
    if video.is_variable:
        yield "variable_rate", f"{video.fps:.2f} frames/s on average"
    if not video.has_sound:
        yield "no_sound", f"{video.codec}, {video.duration_s:.2f} s"
