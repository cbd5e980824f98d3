"""The demo as a run of the studio: one request, and the real thing trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flowloom.tasks.demo import DEMO
from tests.server.conftest import Studio, wait_for


def test_problems_of_a_change_are_reported() -> None:
    assert not DEMO.check({"limits": {"max_minutes": 1}})
    assert [problem.where for problem in DEMO.check({"limits": {"max_minutes": "long"}})] == [
        "limits.max_minutes"
    ]


@pytest.mark.slow
def test_one_request_makes_images_and_models_and_trains(studio_at: Callable[..., Studio]) -> None:
    studio = studio_at().start()
    config = {"limits": {"max_steps": 2}, "inference": {"inference_every": 1, "steps": 1}}
    studio.post("/api/tasks/demo/start", {"name": "demo", "config": config}, 201)
    ended = wait_for(lambda: studio.get("/api/runs/demo")["state"] in ("finished", "failed"))
    run = studio.get("/api/runs/demo")
    assert ended
    assert (run["state"], run["step"], run["trainer"]) == ("finished", 2, "demo")
    assert studio.get("/api/runs/demo/samples")["total"] == 8
    assert (studio.home / "data" / "demo" / "data.jsonl").is_file()
    assert (studio.home / "models" / "demo" / "ae.safetensors").is_file()
