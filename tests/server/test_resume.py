"""A run continues under changed settings, as far as its checkpoints allow it; and on several devices."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]


@pytest.fixture
def finished(studio: Studio, tiny_config: Configs) -> Studio:
    """A studio with a run called `run` that made its three steps."""
    studio.post("/api/flow/train/start", {"name": "run", "config": tiny_config(limits={"max_steps": 3})}, 201)
    studio.wait("run", "finished")
    return studio


def saved_config(studio: Studio) -> str:
    return (studio.home / "runs" / "run" / "run.json").read_text()


def test_a_finished_run_continues_when_its_limit_is_raised(finished: Studio) -> None:
    assert finished.http.post("/api/runs/run/resume", json={}).status_code == 409
    changes = {"limits": {"max_steps": 5}, "training": {"lr": 5e-4}}
    finished.post("/api/runs/run/resume", {"changes": changes})
    assert wait_for(lambda: (run := finished.wait("run", "finished"))["step"] == 5 and run)["max_steps"] == 5
    events = finished.events("run")
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3, 4, 5]
    assert [event["resumed_from"] for event in events if event["kind"] == "started"] == [None, 3]
    content = json.loads(saved_config(finished))
    (record,) = content["changed"]
    assert record["changes"] == {
        "limits.max_steps": {"from": 3, "to": 5},
        "training.lr": {"from": 0.001, "to": 0.0005},
    }


def test_the_commands_of_a_run_are_kept_as_typed_in_a_shell(
    studio_at: Callable[..., Studio], tiny_config: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not-a-real-token")
    studio = studio_at().start()
    studio.post("/api/flow/train/start", {"name": "run", "config": tiny_config(limits={"max_steps": 1})}, 201)
    studio.wait("run", "finished")
    studio.post("/api/runs/run/resume", {"changes": {"limits": {"max_steps": 2}}})
    wait_for(lambda: studio.wait("run", "finished")["step"] == 2)
    kept = (studio.home / "runs" / "run" / "command.txt").read_text()
    commands = [line for line in kept.splitlines() if not line.startswith("#")]
    assert len(commands) == 2
    assert "CUDA_VISIBLE_DEVICES=''" in commands[-1]
    by_hand = subprocess.run(commands[-1], shell=True, capture_output=True, text=True, check=False)
    assert by_hand.returncode == 0, by_hand.stderr
    assert "hf_not-a-real-token" not in kept


@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"training": {"master_seed": 7}}, {"/changes/training/master_seed"}),
        ({"lora": {"rank": 4}}, {"/changes/lora"}),
        (
            {"dataloader": {"batch_size": 2}, "optimizer": {"kind": "adamw_8bit"}},
            {"/changes/dataloader/batch_size", "/changes/optimizer/kind"},
        ),
        ({"limits": {"max_steps": -1}, "limitz": {}}, {"/changes/limits/max_steps", "/changes/limitz"}),
        ({"model": {"vae_path": "/etc/passwd"}}, {"/changes/model/vae_path"}),
    ],
)
def test_settings_that_a_run_cannot_change_are_named_and_nothing_changes(
    one_finished: Studio, changes: dict[str, Any], pointers: set[str]
) -> None:
    before = saved_config(one_finished)
    answer = one_finished.http.post("/api/runs/run/resume", json={"changes": changes})
    assert answer.status_code == 422
    assert {problem["where"] for problem in answer.json()["errors"]} == pointers
    assert saved_config(one_finished) == before
    assert one_finished.run("run")["state"] == "finished"


@pytest.fixture(scope="module")
def one_finished(one_studio: Studio, make_config: Callable[..., Any]) -> Studio:
    """The same, for tests that leave it unchanged."""
    config = make_config(limits={"max_steps": 2}).model_dump(mode="json")
    one_studio.post("/api/flow/train/start", {"name": "run", "config": config}, 201)
    one_studio.wait("run", "finished")
    return one_studio


def test_a_run_of_a_trainer_that_is_not_here_is_shown_and_nothing_more(one_studio: Studio) -> None:
    run = one_studio.home / "runs" / "foreign"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {"a": 1}, "trainer": "sd"}))
    assert one_studio.run("foreign")["trainer"] == "sd"
    for path, body in (("duplicate", {}), ("resume", {"changes": {"a": 2}})):
        answer = one_studio.http.post(f"/api/runs/foreign/{path}", json=body)
        assert (answer.status_code, "'sd'" in answer.json()["detail"]) == (409, True)


@pytest.fixture
def two_devices(studio_at: Callable[..., Studio]) -> Studio:
    """A studio that shares out two devices."""
    return studio_at("home", "--device", "cpu:0", "--device", "cpu:1").start()


@pytest.mark.slow
def test_a_run_on_two_devices_trains_with_two_ranks(two_devices: Studio, tiny_config: Configs) -> None:
    body = {"name": "both", "config": tiny_config(limits={"max_steps": 3}), "devices": ["cpu:0", "cpu:1"]}
    two_devices.post("/api/flow/train/start", body, 201)
    assert wait_for(lambda: (run := two_devices.wait("both", "finished"))["step"] == 3 and run)[
        "devices"
    ] == [
        "cpu:0",
        "cpu:1",
    ]
    kinds = [event["kind"] for event in two_devices.events("both")]
    assert (kinds.count("started"), kinds.count("step"), kinds.count("finished")) == (1, 3, 1)


def ranks_of(home: Path, name: str) -> list[psutil.Process]:
    words = (home / "runs" / name).as_posix()
    return [each for each in psutil.process_iter(["cmdline"]) if words in (each.info["cmdline"] or [])]


@pytest.mark.slow
def test_a_run_on_two_devices_is_killed_with_its_ranks(two_devices: Studio, tiny_config: Configs) -> None:
    body = {"name": "both", "config": tiny_config(limits={"max_steps": 10**6}), "devices": ["cpu:0", "cpu:1"]}
    two_devices.post("/api/flow/train/start", body, 201)
    wait_for(lambda: two_devices.run("both")["step"])
    assert len(ranks_of(two_devices.home, "both")) == 3
    two_devices.post("/api/runs/both/kill")
    two_devices.wait("both", "stopped")
    assert not ranks_of(two_devices.home, "both")


def test_a_run_imported_from_a_bucket_names_no_files_outside_the_studio(one_finished: Studio) -> None:
    path = one_finished.home / "runs" / "run" / "run.json"
    content = json.loads(path.read_text())
    try:
        foreign = content | {"imported_from": "s3://bucket/runs/run"}
        foreign["config"] = content["config"] | {"limits": content["config"]["limits"] | {"max_steps": 9}}
        foreign["config"]["dataloader"] |= {"jsonl_metadata_path": "/etc/passwd"}
        path.write_text(json.dumps(foreign))
        refused = one_finished.http.post("/api/runs/run/resume", json={"changes": {"training": {"lr": 1e-3}}})
        assert refused.status_code == 422
        (problem,) = refused.json()["errors"]
        assert problem["where"] == "/changes/dataloader/jsonl_metadata_path"
        assert "outside the studio's folders" in problem["detail"]
        assert one_finished.get("/api/runs/run/config")["imported_from"] == "s3://bucket/runs/run"
    finally:
        path.write_text(json.dumps(content))
