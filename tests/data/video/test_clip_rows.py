"""Rows of clips: their columns, their buckets by size and number of frames, and batches of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowloom.config.run import RunConfig
from flowloom.data.buckets import LEFT_OUT, assign_frames
from flowloom.data.metadata import read_metadata
from flowloom.data.rows import scan
from flowloom.datasets.load import load_dataset
from flowloom.errors import DataError

CLIP = {"filename": "a.mp4", "caption_or_tags": "a", "width": 64, "height": 48}


def jsonl(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(CLIP | row) + "\n" for row in rows))
    return path


def test_rows_of_clips_and_images_have_their_frames(tmp_path: Path):
    rows = [
        {"start_s": 1.5, "num_frames": 81, "fps": 23.976},
        {},
        {"filename": "a.png"},
        {"filename": "https://host/b?id=3", "num_frames": 5},
        {"filename": "A.MOV", "num_frames": None, "fps": None, "start_s": None},
    ]
    path = jsonl(tmp_path, *rows)
    metadata = read_metadata(path)
    assert metadata.num_frames.tolist() == [81, -1, 0, 5, -1]
    row = metadata.row(0)
    assert (row.start_s, row.num_frames, row.fps, row.is_clip) == (1.5, 81, 23.976, True)
    assert not metadata.row(2).is_clip
    # A line that is checked alone gives the same columns.
    path.write_text(path.read_text() + "\n no row\n")
    alone = scan(path)
    assert [problem.line for problem in alone.problems] == [7]
    assert all(
        (alone.columns[name] == scan(jsonl(tmp_path, *rows)).columns[name]).all()
        for name in ("num_frames", "fps")
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": 10**9}, "num_frames is 1000000000"),
        ({"num_frames": "81"}, "num_frames is '81'"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": 1e9}, "fps is 1000000000.0"),
        ({"start_s": -1}, "start_s is -1"),
        ({"start_s": True}, "start_s is True"),
    ],
)
def test_impossible_clips_are_problems(tmp_path: Path, fields: dict[str, Any], reason: str):
    scanned = scan(jsonl(tmp_path, fields, {}))
    assert [problem.line for problem in scanned.problems] == [1]
    assert scanned.problems[0].reason.startswith(reason)


def test_each_clip_gets_the_most_frames_that_it_has():
    frames = np.array([81, 80, 162, 41, 33, 17, 16, 0, -1], np.int32)
    fps = np.array([0, 16, 32, 8, 0, 0, 0, 0, 0], np.float32)
    lengths = assign_frames(frames, fps, [17, 33, 81], 16)
    assert lengths.tolist() == [81, 33, 81, 81, 33, 17, LEFT_OUT, 1, 81]


def test_a_model_of_images_rejects_videos(tmp_path: Path):
    path = jsonl(tmp_path, {"filename": "a.png"}, {}, {})
    config = RunConfig.model_validate({"dataloader": {"jsonl_metadata_path": str(path)}})
    with pytest.raises(DataError, match=r"data.jsonl:2: a.mp4 is a video, and so are 1 other rows; Chroma"):
        load_dataset(config)
