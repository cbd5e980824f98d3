"""Videos of a dataset as rows of clips: measured once, cut at scene changes or every few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.datasets.build.items import Content, LocalFile
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.readers.listing import StoreObject
from flowloom.errors import DataError

if TYPE_CHECKING:
    # The studio imports builds, and neither numpy nor PyAV.
    from flowloom.data.video.probe import VideoInfo

MAX_MEGAPIXELS = 100.0
"""Videos with larger frames are unusable."""
RULE = "video 1"
"""Rule of measuring; another one makes known videos be read again."""


@dataclass(frozen=True)
class MeasuredVideo:
    """A video, and the starts of its scenes if they were searched for."""

    stamp: str
    info: VideoInfo
    scenes: list[float] | None

    @property
    def entry(self) -> tuple[str, str]:
        """Stamp and value for the build state."""
        return self.stamp, orjson.dumps([asdict(self.info), self.scenes]).decode()

    @property
    def remarks(self) -> Iterator[str]:
        """Notes for the user; the video is trained nevertheless."""
        if self.info.lost_s:
            yield "the end of the video cannot be read and was trimmed: the file is incomplete"
        if self.info.is_variable:
            yield "a variable frame rate, which training resamples by the times of the frames"
        if self.info.is_hdr:
            yield "HDR, which training converts to SDR"

    def clips(self, options: BuildOptions) -> list[dict[str, Any]]:
        """The fields of the row of each clip.

        Raises:
            DataError: every clip would be too short.
        """
        from flowloom.data.video.scenes import MIN_CLIP_S, divided

        info, is_cut = self.info, bool(self.scenes is not None or options.clip_s)
        parts = [(0.0, info.duration_s)]
        if is_cut:
            parts = list(divided(info.duration_s, self.scenes or (), options.clip_s))
        if not parts:
            raise DataError(f"every clip of it is shorter than {MIN_CLIP_S:g} s")
        # One frame less where the rounding would take in the next clip.
        return [
            {
                "width": info.width,
                "height": info.height,
                "start_s": round(start_s, 6),
                "num_frames": max(int(length_s * info.fps + 1e-3), 1),
                "fps": round(info.fps, 6),
            }
            for start_s, length_s in parts
        ]


def measured_video(
    content: Content, known: tuple[str, str] | None, options: BuildOptions
) -> tuple[MeasuredVideo, bool]:
    """The video, and False if it is `known` from an earlier build.

    Raises:
        ImageError: it cannot be read.
        SourceError: its store cannot be read.
    """
    from flowloom.data.video.probe import VideoInfo, probe
    from flowloom.data.video.scenes import scene_starts

    stamp = f"{content.stamp} {RULE}{' scenes' if options.with_scenes else ''}"
    if known and known[0] == stamp:
        info, scenes = orjson.loads(known[1])
        return MeasuredVideo(stamp, VideoInfo(**info), scenes), False
    info = probe(_file(content), MAX_MEGAPIXELS)
    scenes = scene_starts(_file(content), MAX_MEGAPIXELS) if options.with_scenes else None
    return MeasuredVideo(stamp, info, scenes), True


def _file(content: Content) -> Path | RangedFile:
    if isinstance(content, LocalFile):
        return Path(content.key)
    if isinstance(content, StoreObject):
        return RangedFile(content.store, content.name)
    raise DataError("a video inside an archive or table: unpack it")
