"""Scene changes of a video, and its division into clips.

A cut is a frame that differs from the one before by much more than its neighbours do. The two frames from it
on both differ from the two before it, so that a flash is not a cut. Fades and dissolves are not found.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.data.video.container import opened

SIDES = (48, 27)
"""Size at which frames are compared, in pixels."""
AREA = 0x20
"""Scaling by area, as FFmpeg numbers it."""
MIN_DIFFERENCE = 12.0
"""Mean difference of a cut, in levels of 0 to 255."""
MIN_RATIO = 3.0
"""Difference of a cut, relative to the mean of the two frames on either side."""
MIN_CLIP_S = 1.0
"""Shorter clips are left out when a video is cut."""


def scene_starts(source: Path | RangedFile, max_megapixels: float) -> list[float]:
    """The times of the first frames of all scenes after the first one.

    Raises:
        ImageError: `source` is not a video, or is damaged.
        SourceError: its store cannot be read.
    """
    from av.video.reformatter import VideoReformatter

    times, to_last, to_second_last = array("d"), array("d"), array("d")
    scaler = VideoReformatter()
    last: list[NDArray[np.int16]] = []
    with opened(source, max_megapixels) as video:
        for time_s, frame in video.frames_from(0):
            small = scaler.reformat(frame, *SIDES, format="rgb24", interpolation=AREA, threads=1)
            levels = small.to_ndarray().astype(np.int16)
            differences = [float(np.abs(levels - other).mean()) for other in reversed(last)]
            times.append(time_s)
            to_last.append(differences[0] if differences else 0.0)
            to_second_last.append(differences[1] if len(differences) > 1 else 0.0)
            last = [*last[-1:], levels]
    return [times[i] for i in cuts(np.frombuffer(to_last), np.frombuffer(to_second_last))]


def cuts(to_last: NDArray[np.float64], to_second_last: NDArray[np.float64]) -> list[int]:
    """Numbers of the frames that begin a scene.

    Args:
        to_last: (N,) mean difference of each frame to the one before.
        to_second_last: (N,) to the one two frames before.
    """
    if len(to_last) < 2:
        return []
    padded = np.pad(to_last, 2)
    around = (padded[:-4] + padded[1:-3] + padded[3:-1] + padded[4:]) / 4
    # The first two frames have nothing to compare with, and the last one no follower.
    is_other = np.append(to_second_last >= MIN_DIFFERENCE, True)
    is_other[:2] = True
    is_cut = (to_last >= MIN_DIFFERENCE) & (to_last >= MIN_RATIO * around) & is_other[1:] & is_other[:-1]
    return [i for i in np.flatnonzero(is_cut).tolist() if i]


def divided(
    duration_s: float, starts: Sequence[float], clip_s: float | None
) -> Iterator[tuple[float, float]]:
    """(start, length) in seconds of the clips of a video: its scenes, each cut every `clip_s` seconds.

    A remainder of at least MIN_CLIP_S is a clip, too; scenes that are shorter are left out.
    """
    edges = [0.0, *starts, duration_s]
    for start, stop in pairwise(edges):
        at = start
        while stop - at >= MIN_CLIP_S:
            length = min(stop - at, clip_s or stop - at)
            yield at, length
            at += length
