"""Builds of videos: whole, cut at scene changes or every few seconds; broken files are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flowloom.data.buckets import Bucket
from flowloom.data.video.decode import Clip, load_clip
from flowloom.datasets.build.build import BuildReport, build
from flowloom.datasets.build.options import BuildOptions
from flowloom.datasets.build.update import freshness
from tests.data.video.films import SIZE, numbers_of, write_film

pytest.importorskip("av", reason="needs av")


def built(folder: Path, **options: Any) -> tuple[BuildReport, list[dict[str, Any]]]:
    out = folder.parent / "data.jsonl"
    report = build(str(folder), out, BuildOptions(**options), lambda _: None)
    return report, [json.loads(line) for line in out.read_text().splitlines()]


def scene(number: int) -> NDArray[np.uint8]:
    """Three scenes of 40, 30 and 26 frames: a moving bar over another colour each; frame 20 is a flash."""
    colours = [(30, 60, 90), (200, 80, 40), (60, 180, 70)]
    frame = np.full((SIZE[1], SIZE[0], 3), colours[(number >= 40) + (number >= 70)], np.uint8)
    frame[:, number % 56 : number % 56 + 8] += 40
    return np.full_like(frame, 255) if number == 20 else frame


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films") / "films"
    folder.mkdir()
    write_film(folder / "numbered.mp4", 48, rotation=90, sound=True)
    write_film(folder / "scenes.mp4", 96, frame_of=scene)
    whole = write_film(folder / "cut.mkv", 96)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (folder / "text.mp4").write_text("not a video")
    (folder / "numbered.jpg").write_bytes(b"")
    for name in ("numbered", "scenes", "cut", "text"):
        (folder / f"{name}.txt").write_text(f"a film, {name}")
    return folder


def test_each_video_is_a_clip_of_all_its_frames(films: Path):
    report, rows = built(films)
    by_name = {row["filename"]: row for row in rows}
    assert list(by_name) == ["cut.mkv", "numbered.mp4", "scenes.mp4"]
    assert by_name["numbered.mp4"] == {
        "filename": "numbered.mp4", "caption_or_tags": "a film, numbered", "width": 48, "height": 64,
        "is_tag_based": False, "is_url_based": False, "loss_weight": 1.0,
        "start_s": 0.0, "num_frames": 48, "fps": 24.0,
    }  # fmt: skip
    # The end that is missing is left out, and every frame of the row can be read.
    assert 40 < by_name["cut.mkv"]["num_frames"] < 90
    assert any("was trimmed" in remark for remark in report.remarks)
    length = by_name["cut.mkv"]["num_frames"]
    assert len(load_clip(films / "cut.mkv", Clip(0, 24), Bucket(*SIZE, length), 10)) == length
    reasons = {bad.where: bad.reason for bad in report.unusable}
    assert reasons.keys() == {"text.mp4", "numbered.jpg"}
    assert reasons["text.mp4"].startswith("not readable as a video")


def test_images_and_videos_can_be_mixed(films: Path, tmp_path: Path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).symlink_to(films / "numbered.mp4")
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    (folder / "a.txt").write_text("a film and its poster frame")
    report, rows = built(folder, root=tmp_path.parent.parent, caption_suffixes=(".txt",))
    found = {Path(row["filename"]).name: row.get("num_frames") for row in rows}
    assert found == {"a.mp4": 48, "a.png": None}
    assert next(bad.reason for bad in report.unusable).startswith("it has no caption")
    _, rows = built(folder, root=tmp_path.parent.parent, with_videos=False)
    assert [Path(row["filename"]).name for row in rows] == ["a.png"]


def test_a_second_build_reads_no_video_again(films: Path):
    built(films)
    report, rows = built(films)
    assert report.num_read == 0
    assert len(rows) == 3
    assert any("was trimmed" in remark for remark in report.remarks)
    outdated = freshness(films.parent / "data.jsonl")
    assert outdated
    assert not outdated.is_outdated


def test_videos_are_cut_at_scene_changes(films: Path):
    _, rows = built(films, with_scenes=True)
    clips = [row for row in rows if row["filename"] == "scenes.mp4"]
    assert [(round(row["start_s"] * 24), row["num_frames"]) for row in clips] == [(0, 40), (40, 30), (70, 26)]
    for row, colour in zip(clips, (30, 200, 60), strict=True):
        clip = load_clip(films / "scenes.mp4", Clip(row["start_s"], 24), Bucket(*SIZE, row["num_frames"]), 10)
        assert np.abs(clip[[0, -1], ..., 0].min(axis=(1, 2)).astype(int) - colour).max() < 20


def test_videos_are_cut_every_few_seconds(films: Path):
    _, rows = built(films, clip_s=1.5)
    clips = [row for row in rows if row["filename"] == "scenes.mp4"]
    assert [(row["start_s"], row["num_frames"]) for row in clips] == [(0, 36), (1.5, 36), (3.0, 24)]
    row = next(row for row in rows if row["filename"] == "numbered.mp4")
    assert numbers_of(load_clip(films / "numbered.mp4", Clip(0.5, 24), Bucket(48, 64, 3), 10)) == [12, 13, 14]
    assert row["num_frames"] == 36
