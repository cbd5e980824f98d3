"""Generated videos: each frame has a grey level that gives its number, and a red top left corner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = (64, 48)
FIRST_LEVEL, STEP = 40, 3


def numbered(number: int) -> NDArray[np.uint8]:
    """Frame (48, 64, 3) with its number as a grey level."""
    frame = np.full((SIZE[1], SIZE[0], 3), FIRST_LEVEL + STEP * (number % 70), np.uint8)
    frame[:16, :16] = (200, 30, 30)
    return frame


def numbers_of(clip: NDArray[np.uint8]) -> list[int]:
    """The numbers of the frames of `clip`, from their middle."""
    _, height, width, _ = clip.shape
    middle = clip[:, height // 2 : height * 3 // 4, width // 2 : width * 3 // 4]
    return [round((float(frame.mean()) - FIRST_LEVEL) / STEP) for frame in middle]


def write_film(
    path: Path,
    num_frames: int = 48,
    fps: int = 24,
    *,
    times_ms: Sequence[int] | None = None,
    frame_of: Callable[[int], NDArray[np.uint8]] = numbered,
    sound: bool = False,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """A video at `path`.

    Args:
        times_ms: a time for each frame, for a variable frame rate.
        settings: `rotation` in degrees, and attributes of the encoder such as `gop_size`.
    """
    import av

    height, width, _ = frame_of(0).shape
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            codec, rate=fps, options={"crf": "5"} if options is None else options
        )
        stream.width, stream.height, stream.pix_fmt = width, height, settings.pop("pix_fmt", "yuv420p")
        rotation = settings.pop("rotation", 0)
        if rotation:
            stream.set_display_rotation(rotation)
        for name, value in ({"gop_size": 12} | settings).items():
            setattr(stream.codec_context, name, value)
        tone: Any = container.add_stream("aac", rate=16000) if sound else None
        for i in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frame_of(i))
            frame.time_base = Fraction(1, 1000 if times_ms else fps)
            frame.pts = times_ms[i] if times_ms else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if tone:
            wave = np.sin(np.arange(16000 * num_frames // fps) / 16000 * 2 * np.pi * 440, dtype=np.float32)
            sound_frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            sound_frame.sample_rate = 16000
            container.mux(tone.encode(sound_frame))
            container.mux(tone.encode())
    return path
