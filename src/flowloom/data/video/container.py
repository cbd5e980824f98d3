"""Open a video file: only known containers, no references to other files, one clear error."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, cast

from flowloom.data.fetch.ranged_file import RangedFile
from flowloom.errors import ImageError, SourceError

if TYPE_CHECKING:
    from av.codec.context import CodecContext
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_HINT = "pip install 'flowloom[video]'"
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,gif,yuv4mpegpipe"
"""FFmpeg's demuxers that are used; not playlists, which name other files and addresses."""
PROBE_BYTES = 2**23
AHEAD = 8
"""Packets that are read ahead: frames of about the same time are stored within so many packets."""
SEEK_BACK_S = 10.0
"""A seek that arrives too late is repeated from this much earlier."""


@dataclass(frozen=True)
class OpenVideo:
    """The first video stream of a file; times are in seconds after its first frame."""

    container: InputContainer
    stream: VideoStream
    origin_s: float
    """Timestamp of the first frame."""
    slot_of: Callable[[float], int] | None = None
    """Number of the slot of a time. Of a slot only the last frame is needed; others are not decoded if none
    depends on them. None: every frame is needed."""

    def time_of(self, frame: VideoFrame | Packet[VideoStream]) -> float | None:
        """The time of `frame`; None if the file does not give it."""
        if frame.pts is None:
            return None
        return float(frame.pts * (frame.time_base or self.stream.time_base or Fraction(1))) - self.origin_s

    def frames(self, seek_s: float | None) -> Iterator[tuple[float, VideoFrame]]:
        """The frames from the keyframe before `seek_s`, with times that never fall; None: from the position.

        Raises:
            ImageError: the file is damaged after the last of them.
        """
        from av.error import FFmpegError

        last: float | None = None
        try:
            if seek_s is not None and self.stream.time_base:
                offset = int((seek_s + self.origin_s) / self.stream.time_base)
                self.container.seek(offset, stream=self.stream)
            for frame in self._decoded():
                following = (seek_s or 0.0) if last is None else last + 1 / self.rate
                given = self.time_of(frame)
                last = following if given is None else given if last is None else max(last, given)
                yield last, frame
        except (FFmpegError, ImageError) as error:
            raise ImageError(f"damaged after {last or 0:.2f} s: {reason_of(error)}") from error

    def _decoded(self) -> Iterator[VideoFrame]:
        """The frames from the position, with those that the decoder still holds where the file is damaged.

        Raises:
            FFmpegError, ImageError: the file is damaged.
        """
        from av.error import FFmpegError

        is_started = False
        try:
            for packet, is_needed in self._judged():
                self.stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
                # A recording may begin in the middle of a frame.
                if packet.is_corrupt and is_started:
                    raise ImageError("a frame is incomplete")
                for frame in self.stream.decode(packet):
                    is_started = True
                    yield frame
        except (FFmpegError, ImageError):
            with suppress(FFmpegError):
                yield from self.stream.decode(None)
            raise

    def _judged(self) -> Iterator[tuple[Packet[VideoStream], bool]]:
        """The packets from the position, each with False if a later frame of its slot exists."""
        from av.error import FFmpegError

        pending: deque[Packet[VideoStream]] = deque()
        times = deque[float](maxlen=2 * AHEAD)
        try:
            for packet in self.container.demux(self.stream):
                pending.append(packet)
                if (time_s := self.time_of(packet)) is not None:
                    times.append(time_s)
                if len(pending) > AHEAD:
                    yield pending[0], self._is_needed(pending.popleft(), times)
        except FFmpegError:
            yield from ((packet, True) for packet in pending)
            raise
        yield from ((packet, self._is_needed(packet, times)) for packet in pending)

    def _is_needed(self, packet: Packet[VideoStream], times: Iterable[float]) -> bool:
        time_s = self.time_of(packet)
        if self.slot_of is None or time_s is None:
            return True
        slot = self.slot_of(time_s)
        return not any(other > time_s and self.slot_of(other) == slot for other in times)

    def frames_from(self, start_s: float) -> Iterator[tuple[float, VideoFrame]]:
        """The frames in order with their times, from one that is not after `start_s` if there is any.

        Raises:
            ImageError: a frame after `start_s` is damaged.
        """
        margin_s = 0.0
        while True:
            frames = self.frames(max(start_s - margin_s, 0.0) if start_s > 0 else None)
            first = next(frames, None)
            if margin_s >= start_s or (first and first[0] <= start_s + 0.5 / self.rate):
                break
            # The file's index is imprecise, or it has none.
            margin_s = margin_s * 4 + SEEK_BACK_S
        for time_s, frame in chain([first] if first else [], frames):
            if frame.is_corrupt and time_s >= start_s:
                raise ImageError(f"damaged at {time_s:.2f} s")
            yield time_s, frame

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """The packets from the position, as far as they can be read."""
        from av.error import FFmpegError

        with suppress(FFmpegError):
            yield from self.container.demux(self.stream)

    def rewind(self) -> None:
        """Set the position to the start of the file."""
        self.container.seek(0)

    @property
    def rate(self) -> float:
        """The average frame rate by the header; 25 if it gives none."""
        return float(self.stream.average_rate or self.stream.guessed_rate or 25)


@contextmanager
def opened(source: Path | RangedFile, max_megapixels: float = math.inf) -> Generator[OpenVideo]:
    """The video in `source`, for one thread.

    Raises:
        ImageError: it is no video, is damaged, or its frames are larger than `max_megapixels`. Replaces
            FFmpeg's errors while the file is open.
        SourceError: its store cannot be read.
    """
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ImageError(f"videos need PyAV: {VIDEO_HINT}") from error
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "probesize": str(PROBE_BYTES)}
    try:
        file = str(source) if isinstance(source, Path) else source
        reading = av.open(file, container_options=options, metadata_errors="ignore")
        with cast("InputContainer", reading) as container:
            if not container.streams.video:
                raise ImageError("not a video: it has no video stream")
            stream = container.streams.video[0]
            if not cast("CodecContext | None", stream.codec_context):
                raise ImageError("not readable as a video: FFmpeg has no decoder for it")
            check_megapixels(stream.width, stream.height, max_megapixels)
            # The loader decodes several clips at once, each in one thread.
            stream.codec_context.thread_count = 1
            start = (stream.start_time or 0) * (stream.time_base or 0)
            yield OpenVideo(container, stream, float(start))
    except (ImageError, SourceError):
        raise
    except (FFmpegError, OSError, ValueError, MemoryError) as error:
        raise ImageError(f"not readable as a video: {reason_of(error)}") from error
    finally:
        if not isinstance(source, Path):
            source.close()


def reason_of(error: Exception) -> str:
    """The reason of an error of FFmpeg or the system, without numbers and paths."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__


def check_megapixels(width: int, height: int, max_megapixels: float) -> None:
    """Raise ImageError if a frame has no or too many pixels."""
    if width <= 0 or height <= 0:
        raise ImageError("not readable as a video: its frames have no size")
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise ImageError(
            f"{width} x {height} is {megapixels:.0f} megapixels; limits.max_megapixels is {max_megapixels:g}"
        )


@dataclass(frozen=True)
class Geometry:
    """How stored pixels become an upright frame of square pixels."""

    quarter_turns: int
    """Counterclockwise turns of 90 degrees."""
    pixel_aspect: float
    """Width of a stored pixel divided by its height."""

    @classmethod
    def of(cls, frame: VideoFrame, stream: VideoStream) -> Geometry:
        """From the display matrix and the pixel aspect of the container or codec."""
        aspect = float(stream.sample_aspect_ratio or 1)
        return cls(round(frame.rotation / 90) % 4, aspect if 0.01 < aspect < 100 else 1.0)

    def upright(self, width: int, height: int) -> tuple[float, float]:
        """Width and height of a stored frame when shown."""
        across, down = width * self.pixel_aspect, float(height)
        return (down, across) if self.quarter_turns % 2 else (across, down)
