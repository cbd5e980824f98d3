"""Tagging and captioning through the studio: form, check, preview, run, stop, resume, undo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.captioners import write_florence
from tests.fakes.onnx_tagger import write_tagger
from tests.server.conftest import Studio, wait_for
from tests.tasks.tagging.conftest import BLUE, GREEN, RED, paint

FOX = "fox (forest story), red theme, ^_^, long hair, 1girl\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that a studio may read: models and a hundred images."""
    write_tagger(tmp_path / "data" / "tagger")
    paint(tmp_path / "data" / "set", **{f"p{i:03d}": (RED, GREEN, BLUE)[i % 3] for i in range(100)})
    return tmp_path / "data"


@pytest.fixture
def tagging_studio(studio_at: Callable[..., Studio], data: Path) -> Studio:
    return studio_at("home", "--root", f"mine={data}").start()


def start(studio: Studio, task: str, name: str, **config: Any) -> None:
    studio.post(f"/api/tasks/{task}/start", {"name": name, "config": config}, 201)


@pytest.mark.slow
def test_a_folder_is_tagged_by_the_queue(tagging_studio: Studio, data: Path):
    studio, image_dir = tagging_studio, data / "set"
    assert {"tag", "caption", "restore-captions"} <= {one["name"] for one in studio.get("/api/tasks")}
    form = studio.get("/api/tasks/tag/config")
    assert form["defaults"]["general_threshold"] == 0.35
    config = {"data_path": str(image_dir), "model_path": str(data / "tagger")}
    wrong = config | {"general_threshold": 2, "existing": "destroy", "model_path": "/etc"}
    verdict = studio.post("/api/tasks/tag/config", {"config": wrong})
    assert [problem["where"] for problem in verdict["problems"]] == ["/config/model_path"], (
        "outside of the roots"
    )
    verdict = studio.post("/api/tasks/tag/config", {"config": wrong | config})
    assert {problem["where"] for problem in verdict["problems"]} == {
        "/config/general_threshold",
        "/config/existing",
    }

    start(studio, "tag", "look", **config, preview=6)
    studio.wait("look", "finished")
    preview = studio.get("/api/runs/look/result")["preview"]
    assert [one["image"] for one in preview] == [f"p{i:03d}.png" for i in (0, 16, 33, 50, 66, 83)]
    assert preview[0]["after"] == [FOX.strip()]
    assert not list(image_dir.glob("*.txt"))

    start(studio, "tag", "all", **config, batch_size=1)
    wait_for(lambda: list(image_dir.glob("*.txt")))
    stop = studio.http.post("/api/runs/all/stop")
    if stop.is_success:  # else it was faster
        studio.wait("all", "stopped", "finished")
        if studio.run("all")["state"] == "stopped":
            studio.post("/api/runs/all/resume", {})
    studio.wait("all", "finished")
    assert len(list(image_dir.glob("*.txt"))) == 100
    assert (image_dir / "p000.txt").read_text() == FOX
    assert studio.get("/api/runs/all/result")["num_written"] == 100
    assert [event for event in studio.events("all") if event["kind"] == "progress"][-1]["step"] == 100

    run_path = str(studio.home / "runs" / "all")
    start(studio, "restore-captions", "undo", data_path=str(image_dir), run_path=run_path)
    studio.wait("undo", "finished")
    assert studio.get("/api/runs/undo/result")["num_restored"] == 100
    assert not list(image_dir.glob("*.txt"))


@pytest.mark.slow
def test_rows_of_a_jsonl_are_captioned_by_the_queue(tagging_studio: Studio, data: Path):
    write_florence(data / "florence")
    rows = [{"filename": f"set/p{i:03d}.png", "width": 20, "height": 20} for i in range(6)]
    jsonl = data / "set.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"model_path": str(data / "florence"), "max_tokens": 8, "device": "cpu"}
    start(tagging_studio, "caption", "words", data_path=str(jsonl), **model)
    tagging_studio.wait("words", "finished")
    captioned = [json.loads(line) for line in jsonl.read_text().splitlines()]
    assert all(row["caption_or_tags"] and row["is_tag_based"] is False for row in captioned)
    assert tagging_studio.get("/api/runs/words/result")["model"]["kind"] == "florence2"


@pytest.mark.slow
def test_a_run_that_cannot_be_done_says_why(tagging_studio: Studio, data: Path):
    (data / "tagger" / "model.onnx").write_bytes(b"nothing")
    start(tagging_studio, "tag", "bad", data_path=str(data / "set"), model_path=str(data / "tagger"))
    run = tagging_studio.wait("bad", "failed")
    assert "onnxruntime cannot open it" in json.dumps(run)
