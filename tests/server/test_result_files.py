"""Results of a run are downloaded from its page, under descriptive names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from flowloom.engine.clips import Clip, save_generated
from tests.server.conftest import Studio


def a_run(studio: Studio, name: str, result: Any = None) -> Path:
    run = studio.home / "runs" / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"config": {}}))
    if result is not None:
        (run / "result.json").write_text(json.dumps(result))
    return run


def test_files_that_a_result_names_are_listed_and_downloaded(one_studio: Studio):
    studio = one_studio
    weights = studio.home / "runs" / "export-1" / "checkpoints" / "fox-step_00000500-comfy.safetensors"
    jsonl = studio.home / "data" / "my foxes & co.jsonl"
    jsonl.parent.mkdir(exist_ok=True)
    jsonl.write_text("rows\n")
    result = {
        "path": str(weights),
        "size": 7,
        "built": [{"output": str(jsonl)}, str(studio.home / "data" / "no")],
    }
    a_run(studio, "export-1", result)
    weights.write_bytes(b"weights")
    files = studio.get("/api/runs/export-1/result/files")
    assert [(file["name"], file["size"]) for file in files] == [(weights.name, 7), (jsonl.name, 5)]
    answers = [studio.http.get(file["url"]) for file in files]
    assert [answer.content for answer in answers] == [b"weights", b"rows\n"]
    assert answers[0].headers["content-disposition"] == f'attachment; filename="{weights.name}"'


def test_files_outside_of_the_folders_are_not_listed(one_studio: Studio, tmp_path: Path):
    secret = tmp_path / "secret.txt"
    secret.write_text("somebody's")
    run = a_run(one_studio, "export-2")
    link = run / "link.txt"
    link.symlink_to(secret)
    paths = [
        str(secret),
        str(link),
        str(run / ".." / ".." / ".." / "secret.txt"),
        str(run),
        "/\0",
        "/" * 5000,
    ]
    (run / "result.json").write_text(json.dumps({"paths": paths}))
    assert one_studio.get("/api/runs/export-2/result/files") == []


def test_checkpoints_of_different_steps_are_downloaded_under_different_names(one_studio: Studio):
    run = a_run(one_studio, "fox")
    for step in ("step_00000100", "step_00000200"):
        (run / "checkpoints" / step).mkdir()
        (run / "checkpoints" / step / "adapter.safetensors").write_bytes(b"weights")
    listed = one_studio.get("/api/runs/fox/checkpoints")["checkpoints"]
    urls = [file["url"] for checkpoint in listed for file in checkpoint["files"]]
    names = [one_studio.http.get(url).headers["content-disposition"] for url in urls]
    assert sorted(names) == [
        f'attachment; filename="fox-{step}-adapter.safetensors"'
        for step in ("step_00000100", "step_00000200")
    ]


def test_a_clip_is_listed_once_read_by_ranges_and_shown_by_its_poster(one_studio: Studio):
    folder = a_run(one_studio, "clips") / "samples" / "step_00000100"
    folder.mkdir(parents=True)
    frames = np.zeros((5, 64, 96, 3), np.uint8)
    files = save_generated(Clip(frames, 16.0), folder, "00", "webp", "mp4")
    record = {"prompt": "a fox", "num_frames": 5, "fps": 16.0}
    (folder / "samples.json").write_text(json.dumps([files | record]))
    (sample,) = one_studio.get("/api/runs/clips/samples")["samples"]
    assert (sample["file"], sample["media"]) == ("step_00000100/00.mp4", "video")
    assert sample["settings"] == {"num_frames": 5, "fps": 16.0}
    whole = one_studio.http.get(sample["url"])
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    part = one_studio.http.get(sample["url"], headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    poster = one_studio.http.get(f"{sample['url']}?size=128")
    assert poster.headers["content-type"] == "image/webp"
    (folder / "00.poster.webp").unlink()
    assert one_studio.http.get(f"{sample['url']}?size=128").status_code == 404
