"""A run shows its newest attempt alone, says what a resume begins with, and ends with its folder."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]
PREVIEW = {"inference_every": 2, "steps": 1, "prompts": ["red"], "image_dim": [64, 64]}


def start(studio: Studio, name: str, config: dict[str, Any]) -> None:
    studio.post("/api/flow/train/start", {"name": name, "config": config}, 201)


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_nothing_of_the_first_attempt(
    studio: Studio, tiny_config: Configs
) -> None:
    config = tiny_config(limits={"max_steps": 400}, inference=PREVIEW, preview={"batch_caption": False})
    start(studio, "fox", config)
    run = wait_for(lambda: (run := studio.run("fox"))["step"] > 4 and run)
    os.kill(run["pid"], signal.SIGKILL)
    killed = studio.wait("fox", "interrupted")
    assert (killed["can_resume"], killed["starts_over"], killed["checkpoint"]) == (True, True, None)
    assert killed["error"]["hint"] == "No checkpoint was saved: start it again."
    assert studio.get("/api/runs/fox/metrics")["num_steps"] > 4
    assert studio.get("/api/runs/fox/samples")["total"] >= 2
    studio.post("/api/runs/fox/resume", {"changes": {"limits": {"max_steps": 3}}})
    over = wait_for(lambda: (run := studio.wait("fox", "finished"))["step"] == 3 and run)
    assert not over["starts_over"]
    chart = studio.get("/api/runs/fox/metrics")
    assert chart["steps"] == [1, 2, 3]
    assert {mark["step"] for mark in chart["marks"]} == {2, 3}
    assert {one["step"] for one in studio.get("/api/runs/fox/samples")["samples"]} == {2}


def test_a_run_that_failed_before_a_checkpoint_says_so_without_contradiction(
    studio: Studio, tiny_config: Configs
) -> None:
    start(studio, "boom", tiny_config(training={"lr": 1e30, "warmup_steps": 0}, limits={"max_steps": 50}))
    run = studio.wait("boom", "failed")
    assert (run["starts_over"], run["checkpoint"]) == (True, None)
    assert "No checkpoint was saved" in run["error"]["hint"]
    assert "checkpoint" not in run["error"]["message"]


def test_a_damaged_line_hides_nothing_after_it_and_is_counted(studio: Studio, tiny_config: Configs) -> None:
    start(studio, "fox", tiny_config(limits={"max_steps": 5}))
    studio.wait("fox", "finished")
    path = studio.home / "runs" / "fox" / "events.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"step": 2,' in line)
    lines[number] = b"\0" * (len(lines[number]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    chart = studio.get("/api/runs/fox/metrics")
    assert (chart["steps"], chart["damaged_lines"]) == ([1, 3, 4, 5], 1)
    assert studio.run("fox")["state"] == "finished"


def test_a_process_of_another_trainer_ends_with_its_folder(studio: Studio, tmp_path: Path) -> None:
    """A run that writes no events and reads no requests: its supervisor ends it."""
    big = studio.home / "data" / "big.bin"
    big.parent.mkdir(exist_ok=True)
    with big.open("wb") as file:
        file.truncate(2**38)
    studio.post("/api/tasks/hash/start", {"name": "sums", "config": {"paths": [str(big)]}}, 201)
    run = wait_for(lambda: (run := studio.run("sums"))["state"] == "running" and run["pid"] and run)
    folder = studio.home / "runs" / "sums"
    folder.rename(tmp_path / "elsewhere")
    wait_for(lambda: not psutil.pid_exists(run["pid"]))
    assert not folder.exists()
    shutil.rmtree(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "path", ["flow/config", "flow/config/preview", "tasks/cache/config", "flow-upstream/config"]
)
def test_a_token_in_a_configuration_is_named_with_the_place_where_it_belongs(
    one_studio: Studio, tiny_config: Configs, path: str
) -> None:
    config = tiny_config()
    config["training"] |= {"wandb_key": "0123456789" * 4, "hf_token": "hf_not-a-real-token"}
    verdict = one_studio.post(f"/api/{path}", {"config": config})
    problems = {problem["where"]: problem["detail"] for problem in verdict["problems"]}
    assert "PUT /api/secrets/WANDB_API_KEY" in problems["/config/training/wandb_key"]
    assert "PUT /api/secrets/HF_TOKEN" in problems["/config/training/hf_token"]
    assert "0123456789" not in str(verdict)
    assert "hf_not-a-real-token" not in str(verdict)


@pytest.mark.parametrize("path", ["flow/train/start", "flow/preflight", "tasks/cache/start"])
def test_a_token_in_a_configuration_starts_nothing(
    one_studio: Studio, tiny_config: Configs, path: str
) -> None:
    config = tiny_config()
    config["training"] |= {"wandb_key": "0123456789" * 4}
    answer = one_studio.http.post(f"/api/{path}", json={"config": config})
    assert answer.status_code == 422
    assert [error["where"] for error in answer.json()["errors"]] == ["/config/training/wandb_key"]
    assert "0123456789" not in answer.text
    kept = one_studio.home.rglob("*.json")
    assert not [file for file in kept if "0123456789" in file.read_text(errors="replace")]


@pytest.mark.parametrize(
    ("path", "config", "pointer"),
    [
        ("flow", {"model": {"chroma_path": "s3://b/x.safetensors"}}, "/config/model/chroma_path"),
        ("tasks/export", {"source_path": "x", "out_path": "s3://b/x.safetensors"}, "/config/out_path"),
        ("tasks/hash", {"paths": ["s3://b/x"]}, "/config/paths/0"),
        ("flow-upstream", {"training": {"save_folder": "s3://b"}}, "/config/training/save_folder"),
    ],
)
def test_an_address_in_the_place_of_a_path_is_a_problem(
    one_studio: Studio, path: str, config: dict[str, Any], pointer: str
) -> None:
    verdict = one_studio.post(f"/api/{path}/config", {"config": config})
    problems = {problem["where"]: problem["detail"] for problem in verdict["problems"]}
    assert "is a URL" in problems[pointer]
