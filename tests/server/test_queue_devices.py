"""A run without a chosen device starts on any idle one, with every trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]
ENDLESS: dict[str, Any] = {"limits": {"max_steps": 10**6}}


@pytest.fixture
def two_devices(studio_at: Callable[..., Studio]) -> Studio:
    return studio_at("home", "--device", "cpu:0", "--device", "cpu:1").start()


def begin(studio: Studio, name: str, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    return studio.post("/api/flow/train/start", {"name": name, "config": config, **more}, 201)


@pytest.mark.slow
def test_a_run_without_a_device_starts_on_an_idle_one(two_devices: Studio, tiny_config: Configs) -> None:
    studio = two_devices
    begin(studio, "first", tiny_config(**ENDLESS))
    assert wait_for(lambda: studio.run("first")["state"] == "running" and studio.run("first")["devices"]) == [
        "cpu:0"
    ]
    second = begin(studio, "second", tiny_config(**ENDLESS))
    assert second["devices"] == [], "not chosen before it starts"
    assert wait_for(
        lambda: studio.run("second")["state"] == "running" and studio.run("second")["devices"]
    ) == ["cpu:1"]
    begin(studio, "third", tiny_config(**ENDLESS))
    begin(studio, "bound", tiny_config(**ENDLESS), devices=["cpu:0"])
    studio.post("/api/runs/second/kill")
    assert wait_for(lambda: studio.run("third")["state"] == "running" and studio.run("third")["devices"]) == [
        "cpu:1"
    ]
    assert studio.run("bound")["state"] == "queued", "waits for its own device"

    studio.post("/api/runs/first/kill")
    studio.wait("bound", "running")
    studio.post("/api/runs/third/kill")
    studio.wait("first", "stopped")
    studio.post("/api/runs/first/resume", {})
    resumed = wait_for(lambda: studio.run("first")["state"] == "running" and studio.run("first"))
    assert resumed["devices"] == ["cpu:1"], "a resume is not bound to a device that was not chosen"
    for name in ("first", "bound"):
        studio.post(f"/api/runs/{name}/kill")


@pytest.mark.slow
def test_a_task_that_needs_a_device_takes_an_idle_one(two_devices: Studio, tiny_config: Configs) -> None:
    studio = two_devices
    begin(studio, "busy", tiny_config(**ENDLESS), devices=["cpu:0"])
    studio.wait("busy", "running")
    made = studio.post("/api/tasks/cache/start", {"config": tiny_config()}, 201)
    assert wait_for(
        lambda: studio.run(made["id"])["state"] != "queued" and studio.run(made["id"])["devices"]
    ) == ["cpu:1"]
    studio.post("/api/runs/busy/kill")
