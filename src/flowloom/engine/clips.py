"""Generated images and clips as files: PNG or WebP; MP4 or WebM with a poster, which is the first frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowloom.data.video.container import VIDEO_HINT
from flowloom.errors import ImageError
from flowloom.files import replacing
from flowloom.image_suffixes import POSTER

ImageFormat = Literal["png", "webp"]
ClipFormat = Literal["mp4", "webm"]
CODECS = {
    "mp4": ("libx264", {"crf": "18", "preset": "medium"}),
    "webm": ("libvpx-vp9", {"crf": "24", "b:v": "0"}),
}
"""Codec and its options by format, all of which browsers play."""


@dataclass(frozen=True)
class Clip:
    """A generated clip."""

    frames: NDArray[np.uint8]
    """(F, H, W, 3); even sides."""
    fps: float

    @property
    def poster(self) -> Image.Image:
        """The first frame."""
        return Image.fromarray(self.frames[0])

    def save(self, path: Path, clip_format: ClipFormat) -> None:
        """Write the clip to `path`.

        Raises:
            ImageError: PyAV is missing.
        """
        try:
            import av
        except ImportError as error:
            raise ImageError(f"clips need PyAV: {VIDEO_HINT}") from error

        codec, options = CODECS[clip_format]
        # The index of an MP4 comes first, so that a browser plays before it has the whole file.
        settings = {"movflags": "faststart"} if clip_format == "mp4" else {}
        rate = Fraction(self.fps).limit_denominator(1001)
        with av.open(str(path), "w", clip_format, options=settings) as container:
            stream: Any = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = self.frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in self.frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


Generated = Image.Image | Clip


def generated(pixels: NDArray[np.uint8], fps: float | None) -> Generated:
    """The clip (F, H, W, 3), or the image (H, W, 3) or (1, H, W, 3), with these pixels."""
    if pixels.ndim == 4 and len(pixels) > 1:
        assert fps
        return Clip(pixels, fps)
    return Image.fromarray(pixels.reshape(pixels.shape[-3:]))


def save_generated(
    made: Generated, folder: Path, stem: str, image_format: ImageFormat, clip_format: ClipFormat
) -> dict[str, str]:
    """Write `made` to `folder` under the name `stem`; the names of its files for samples.json."""
    if isinstance(made, Image.Image):
        with replacing(folder / f"{stem}.{image_format}") as file:
            made.save(file, image_format)
        return {"file": f"{stem}.{image_format}"}
    path = folder / f"{stem}.{clip_format}"
    partial = path.with_name(f"{path.name}.tmp")
    made.save(partial, clip_format)
    partial.replace(path)
    poster = f"{stem}{POSTER}.{image_format}"
    with replacing(folder / poster) as file:
        made.poster.save(file, image_format)
    return {"file": f"{stem}.{clip_format}", "poster": poster}
