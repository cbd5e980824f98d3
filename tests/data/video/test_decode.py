"""Clips: the right frames at a constant rate, upright, in the right colours; damaged and hostile files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from flowloom.data.buckets import Bucket
from flowloom.data.video.decode import Clip, load_clip
from flowloom.errors import ImageError
from tests.data.video.films import SIZE, numbers_of, write_film

pytest.importorskip("av", reason="needs av")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames at 24 frames/s with B-frames and a keyframe every 12 frames."""
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", sound=True)


def clip_of(path: Path, start_s: float, fps: float, num_frames: int, size: tuple[int, int] = SIZE):
    return load_clip(path, Clip(start_s, fps), Bucket(*size, num_frames), 10)


@pytest.mark.parametrize("start", [0, 1, 11, 12, 13, 30])
def test_the_clip_starts_at_exactly_its_frame(film: Path, start: int):
    assert numbers_of(clip_of(film, start / 24, 24, 9)) == list(range(start, start + 9))


def test_frames_are_resampled_by_their_times(film: Path):
    # At time k / fps: the last frame that is not later, both rounded to the slots of the result.
    assert numbers_of(clip_of(film, 0, 12, 9)) == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert numbers_of(clip_of(film, 0, 16, 9)) == [0, 2, 3, 5, 6, 8, 9, 11, 12]
    assert numbers_of(clip_of(film, 1, 48, 5)) == [24, 24, 25, 25, 26]


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path):
    times = [0, 40, 80, 500, 540, 1000, 1040, 1080]
    path = write_film(tmp_path / "variable.mkv", 8, times_ms=times)
    assert numbers_of(clip_of(path, 0, 10, 11)) == [1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6]


def test_a_clip_ends_with_its_last_frame(film: Path):
    assert numbers_of(clip_of(film, 1, 24, 24))[-1] == 47
    with pytest.raises(ImageError, match=r"has 24 frames at 24 frames/s from 1 s on; 25 are needed"):
        clip_of(film, 1, 24, 25)


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))], ids=["90", "180", "270"]
)
def test_rotation_is_applied(tmp_path: Path, degrees: int, corner: tuple[int, int]):
    path = write_film(tmp_path / "turned.mp4", 3, rotation=degrees)
    size = SIZE if degrees == 180 else (SIZE[1], SIZE[0])
    frame = clip_of(path, 0, 24, 1, size)[0]
    # 90 degrees counterclockwise bring the top left corner to the bottom left.
    red = frame[corner[0] * 4 + (corner[0] == 0) * 4, corner[1] * 4 + (corner[1] == 0) * 4].astype(int)
    assert red[0] > 150
    assert red[1] < 80


def test_wide_pixels_are_made_square(tmp_path: Path):
    """64 x 48 pixels of 3:2 are shown as 96 x 48: the red corner is 24 x 16."""
    path = write_film(tmp_path / "wide.mp4", 3, sample_aspect_ratio=Fraction(3, 2))
    frame = clip_of(path, 0, 24, 1, (96, 48))[0].astype(int)
    reds = frame[..., 0] - frame[..., 1] > 60
    assert abs(reds[8].sum() - 24) <= 1
    assert abs(reds[:, 8].sum() - 16) <= 1


def test_the_crop_is_the_centre_at_full_height(film: Path):
    frame = clip_of(film, 0, 24, 1, (48, 48))[0]
    assert np.abs(frame.astype(int) - clip_of(film, 0, 24, 1)[0, :, 8:56].astype(int)).max() <= 2
