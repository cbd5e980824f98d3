"""Damaged and hostile files: one clear error each, and never another file, a crash, or much memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from flowloom.data.buckets import Bucket
from flowloom.data.video.decode import Clip, load_clip
from flowloom.data.video.probe import probe
from flowloom.errors import ImageError
from tests.data.video.films import SIZE, numbered, numbers_of, write_film

av = pytest.importorskip("av", reason="needs av")

HEADER_FIRST = {"movflags": "faststart"}


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """96 frames, with the header before the frames."""
    folder = tmp_path_factory.mktemp("films")
    plain = write_film(folder / "plain.mp4", 96, frame_of=with_noise)
    with av.open(str(plain)) as source, av.open(str(folder / "first.mp4"), "w", options=HEADER_FIRST) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    return (folder / "first.mp4").read_bytes()


def with_noise(number: int) -> NDArray[np.uint8]:
    """A numbered frame with some detail, so that each frame has some bytes."""
    frame = numbered(number)
    noise = np.random.default_rng(number).integers(0, 255, (8, 32, 3))
    frame[40:, 32:] = noise
    return frame


def changed(film: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    at = film.index(name) + offset
    return film[:at] + value + film[at + len(value) :]


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "not readable as a video"),
    "text": (lambda _: b"hello " * 1000, "not readable as a video"),
    "a playlist of addresses": (
        lambda _: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n",
        "not readable as a video",
    ),
    "a list of files": (lambda _: b"ffconcat version 1.0\nfile other.mp4\n", "not readable as a video"),
    "a billion frames": (lambda film: changed(film, b"stsz", 12, (10**9).to_bytes(4, "big")), "not readable"),
    "huge frames": (lambda _: b"YUV4MPEG2 W9000 H9000 F25:1 C420jpeg\nFRAME\n", "is 81 megapixels"),
    "no header": (lambda film: film[film.index(b"mdat") :], "not readable as a video"),
    "header only": (lambda film: film[: film.index(b"mdat") + 8], "damaged after 0.00 s"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_give_one_clear_error(tmp_path: Path, film: bytes, name: str):
    (tmp_path / "other.mp4").write_bytes(film)
    change, reason = HOSTILE[name]
    path = tmp_path / "a.mp4"
    path.write_bytes(change(film))
    for read in (lambda: load_clip(path, Clip(0, 24), Bucket(*SIZE, 9), 10), lambda: probe(path, 10)):
        with pytest.raises(ImageError, match=reason) as caught:
            read()
        assert str(tmp_path) not in str(caught.value)


def test_a_file_with_sound_only_is_no_video(tmp_path: Path):
    path = tmp_path / "sound.mp4"
    with (
        av.open(str(write_film(tmp_path / "both.mp4", 24, sound=True))) as source,
        av.open(str(path), "w") as copy,
    ):
        stream = copy.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    with pytest.raises(ImageError, match="it has no video stream"):
        load_clip(path, Clip(0, 24), Bucket(*SIZE, 1), 10)


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_a_cut_end_is_found_and_what_is_before_it_is_read(tmp_path: Path, film: bytes, share: float):
    path = tmp_path / "cut.mp4"
    path.write_bytes(film[: int(len(film) * share)])
    info = probe(path, 10)
    assert 10 < info.num_frames < 96
    assert info.lost_s == pytest.approx((96 - info.num_frames) / 24, abs=0.01)
    clip = load_clip(path, Clip(0, 24), Bucket(*SIZE, info.num_frames), 10)
    assert numbers_of(clip)[:20] == list(range(20))
    with pytest.raises(ImageError):
        load_clip(path, Clip(0, 24), Bucket(*SIZE, 96), 10)


def test_any_changed_bytes_give_frames_or_one_error(tmp_path: Path, film: bytes):
    draw = random.Random(0)
    path = tmp_path / "a.mp4"
    errors: list[str] = []
    for _ in range(60):
        content = bytearray(film)
        for _ in range(draw.choice([1, 5, 50])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            load_clip(path, Clip(draw.choice([0, 2]), 24), Bucket(*SIZE, 17), 10)
        except ImageError as error:
            errors.append(str(error))
    assert 5 < len(errors) < 55
    assert not [error for error in errors if "\n" in error or str(tmp_path) in error]


def test_the_facts_of_a_video(tmp_path: Path):
    info = probe(write_film(tmp_path / "a.mp4", 30, sound=True, rotation=90), 10)
    assert (info.width, info.height, info.fps, info.num_frames, info.codec) == (48, 64, 24.0, 30, "h264")
    assert (info.has_sound, info.is_hdr, info.is_full_range, info.is_variable, info.lost_s) == (
        True, False, False, False, 0.0,
    )  # fmt: skip
    times = [0, 40, 80, 500, 540, 1000, 1040, 1800]
    info = probe(write_film(tmp_path / "b.mkv", 8, times_ms=times), 10)
    assert info.is_variable
    assert not info.has_sound
    assert info.duration_s == pytest.approx(1.84, abs=0.15)
