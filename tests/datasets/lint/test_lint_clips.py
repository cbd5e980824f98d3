"""Lint of clips: broken, incomplete, too long and too short ones are found, and good ones are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowloom.cli.lint import fix, lint
from tests.data.video.films import write_film

pytest.importorskip("av", reason="needs av")


def test_problems_of_clips_are_found_and_only_broken_ones_are_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_film(tmp_path / "good.mp4", 30, sound=True)
    cut = write_film(tmp_path / "cut.mkv", 96)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    write_film(tmp_path / "uneven.mkv", 8, times_ms=[0, 40, 80, 500, 540, 1000, 1040, 1800])
    (tmp_path / "text.mp4").write_text("not a video")
    rows = [
        {"filename": "good.mp4", "num_frames": 30, "fps": 24},
        {"filename": "good.mp4", "start_s": 1.0, "num_frames": 30, "fps": 24},
        {"filename": "cut.mkv", "num_frames": 40, "fps": 24},
        {"filename": "uneven.mkv"},
        {"filename": "text.mp4"},
        {"filename": "gone.mp4"},
        {"filename": "good.mp4", "width": 60},
    ]
    usual = {"caption_or_tags": "a film", "width": 64, "height": 48}
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(usual | row) + "\n" for row in rows))
    lint([str(path), "--json", "--resolution", "64", "--upscale", "9"])
    found: dict[str, list[int]] = {}
    for finding in json.loads(capsys.readouterr().out)["findings"]:
        found.setdefault(finding["kind"], []).append(finding["line"])
    assert found == {
        "clip_end": [2], "cut_video": [3], "variable_rate": [4], "no_sound": [3, 4],
        "damaged_file": [5], "missing_file": [6], "wrong_size": [7],
    }  # fmt: skip
    fix([str(path), "-o", str(tmp_path / "fixed.jsonl"), "--resolution", "64", "--upscale", "9"])
    kept = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    names = ["good.mp4", "good.mp4", "cut.mkv", "uneven.mkv", "good.mp4"]
    assert [row["filename"] for row in kept] == names
    assert kept[-1]["width"] == 64
