"""A run of FLOW itself through the queue: followed, stopped, resumed, its results shown."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.flow_checkout import flow_checkout  # noqa: F401 -- a fixture
from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]


@pytest.fixture
def studio(studio_at: Callable[..., Studio], flow_checkout: Path) -> Studio:  # noqa: F811
    """A studio on a machine whose owner has named a checkout."""
    return studio_at().start()


@pytest.fixture
def flow_config(studio: Studio) -> Configs:
    """`flow_config(training={...})`: one that the stand-in's newer trainer takes."""
    for name in ("chroma.safetensors", "data.jsonl"):
        (studio.home / "data").mkdir(exist_ok=True)
        (studio.home / "data" / name).touch()
    defaults: dict[str, Any] = {
        "training": {"save_every": 2, "trained_layer_keywords": ["double_blocks.0."]},
        "inference": {"inference_every": 3, "prompts": ["a fox"]},
        "dataloader": {"batch_size": 4, "jsonl_metadata_path": str(studio.home / "data" / "data.jsonl")},
        "model": {"chroma_path": str(studio.home / "data" / "chroma.safetensors")},
    }

    def make(**sections: dict[str, Any]) -> dict[str, Any]:
        merged = {name: section | sections.get(name, {}) for name, section in defaults.items()}
        return {"trainer": "src.trainer.train_chroma", **merged}

    return make


def start(studio: Studio, name: str, config: dict[str, Any]) -> None:
    studio.post("/api/flow-upstream/train/start", {"name": name, "config": config}, 201)


def kinds(studio: Studio, name: str) -> list[str]:
    return [event["kind"] for event in studio.events(name)]


def test_a_run_of_flow_is_followed_to_its_end(
    studio: Studio,
    flow_config: Configs,
    flow_checkout: Path,  # noqa: F811
) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(flow_checkout), *arguments], check=True)
    start(studio, "whole", flow_config(training={"master_seed": 2}))
    run = studio.wait("whole", "finished")
    assert (run["trainer"], run["step"]) == ("flow-upstream", 12)
    head = ["git", "-C", str(flow_checkout), "rev-parse", "--short", "HEAD"]
    revision = subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    kept = (studio.home / "runs" / "whole" / "command.txt").read_text()
    assert f"{flow_checkout} at {revision}\n" in kept
    events = studio.events("whole")
    assert [event["seq"] for event in events] == list(range(len(events)))
    said = kinds(studio, "whole")
    assert said[:2] == ["phase", "phase"]
    assert (said.count("started"), said.count("sampled"), said[-1]) == (1, 4, "finished")
    steps = [event["step"] for event in events if event["kind"] == "progress"]
    assert steps == sorted(steps)
    assert steps[-1] == 12
    saved = [event["dir"] for event in events if event["kind"] == "saved"]
    names = [f"2026-01-01_00-00-{epoch}-{batch}.pth" for epoch in (0, 1) for batch in (1, 3, 5)]
    assert saved == [f"checkpoints/{name}" for name in names]
    found = studio.get("/api/runs/whole/samples")
    assert sorted((one["file"], one["step"]) for one in found["samples"]) == [("2.jpg", 3), ("5.jpg", 6)]
    assert studio.http.get(found["samples"][0]["url"], params={"size": 128}).status_code == 200
    checkpoints = studio.get("/api/runs/whole/checkpoints")["checkpoints"]
    assert checkpoints[0]["name"] == run["checkpoint"] == names[-1]
    (file,) = checkpoints[0]["files"]
    assert len(studio.http.get(file["url"]).content) == file["size"]


def test_results_in_folders_of_the_user_come_out_of_the_same_routes(
    studio: Studio, flow_config: Configs
) -> None:
    saved, sample_dir = studio.home / "data" / "saved", studio.home / "data" / "drawn"
    saved.mkdir()
    (saved / "older.pth").write_bytes(b"of another run")
    os.utime(saved / "older.pth", (1, 1))
    config = flow_config(
        training={"master_seed": 1, "save_folder": str(saved)},
        inference={"inference_folder": str(sample_dir)},
    )
    start(studio, "elsewhere", config)
    studio.wait("elsewhere", "finished")
    names = [one["name"] for one in studio.get("/api/runs/elsewhere/checkpoints")["checkpoints"]]
    assert names == [f"2026-01-01_00-00-0-{i}.pth" for i in (5, 3, 1)]
    (first, _) = studio.get("/api/runs/elsewhere/samples")["samples"]
    assert studio.http.get(first["url"]).headers["content-type"] == "image/jpeg"
    assert studio.http.delete(f"/api/runs/elsewhere/checkpoints/{names[0]}").status_code == 204
    assert not (saved / names[0]).exists()
    outside = flow_config(training={"save_folder": "/somewhere/else"})
    answer = studio.http.post("/api/flow-upstream/train/start", json={"config": outside})
    assert [problem["where"] for problem in answer.json()["errors"]] == ["/config/training/save_folder"]


def test_a_stop_waits_for_what_flow_saves_and_a_resume_begins_there(
    studio: Studio, flow_config: Configs
) -> None:
    start(studio, "stopped", flow_config())
    wait_for(lambda: studio.run("stopped")["step"])
    refused = studio.http.post("/api/runs/stopped/control", json={"action": "sample"})
    assert (refused.status_code, "none" in refused.json()["hint"]) == (409, True)
    studio.post("/api/runs/stopped/stop")
    run = studio.wait("stopped", "stopped")
    assert run["checkpoint"]
    said = kinds(studio, "stopped")
    assert said[-1] == "stopped"
    saved = [event["step"] for event in studio.events("stopped") if event["kind"] == "saved"]
    studio.post("/api/runs/stopped/resume", {})
    wait_for(lambda: kinds(studio, "stopped").count("started") == 2)
    again = [event for event in studio.events("stopped") if event["kind"] == "started"][1]
    assert again["resumed_from"] == saved[-1]
    wait_for(lambda: studio.run("stopped")["step"] > run["step"])
    given = (studio.home / "runs" / "stopped" / "flow" / "training_config.json").read_text()
    assert run["checkpoint"] in given
    studio.post("/api/runs/stopped/kill")
    assert studio.wait("stopped", "stopped")["can_resume"]


def test_a_run_of_flow_that_fails_says_why(studio: Studio, flow_config: Configs) -> None:
    start(studio, "broken", flow_config(training={"master_seed": -1}))
    error = studio.wait("broken", "failed")["error"]
    assert (error["error"], error["message"]) == ("ValueError", "the master seed is below 0")
    assert "log" in error["hint"]


def test_a_killed_studio_misses_nothing_of_a_run_of_flow(studio: Studio, flow_config: Configs) -> None:
    start(studio, "outlives", flow_config(training={"master_seed": 3}))
    wait_for(lambda: studio.run("outlives")["step"])
    studio.end(signal.SIGKILL)
    studio.start()
    run = studio.wait("outlives", "finished")
    assert run["step"] == 18
    assert [event["seq"] for event in studio.events("outlives")] == list(range(run["last_seq"] + 1))


def test_a_killed_process_of_flow_is_interrupted(studio: Studio, flow_config: Configs) -> None:
    start(studio, "killed", flow_config())
    run = wait_for(lambda: (run := studio.run("killed"))["step"] and run)
    os.kill(run["pid"], signal.SIGKILL)
    assert studio.wait("killed", "interrupted")["can_resume"]


def test_flow_itself_is_not_given_a_folder_that_it_cannot_read(studio: Studio, flow_config: Configs) -> None:
    config = flow_config(dataloader={"jsonl_metadata_path": str(studio.home / "data")})
    (problem,) = studio.post("/api/flow-upstream/config", {"config": config})["problems"]
    assert problem["where"] == "/config/dataloader/jsonl_metadata_path"
    assert "reads only JSONL" in problem["detail"]
