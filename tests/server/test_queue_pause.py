"""A queue left alone over night: what a run that fails does to those behind it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]


def change(studio: Studio, **body: Any) -> Any:
    answer = studio.http.patch("/api/queue", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def begin(studio: Studio, name: str, config: dict[str, Any]) -> None:
    studio.post("/api/flow/train/start", {"name": name, "config": config}, 201)


def kill_process(studio: Studio, name: str) -> None:
    """As the kernel does when memory is short."""
    pid = wait_for(lambda: studio.wait(name, "running")["pid"])
    wait_for(lambda: studio.events(name))
    os.kill(pid, signal.SIGKILL)


def test_a_queue_continues_after_a_failure_unless_set_to_pause(studio: Studio, tiny_config: Configs):
    assert studio.get("/api/queue")["on_fail"] == "continue"
    begin(studio, "first", tiny_config(limits={"max_steps": 10_000}))
    begin(studio, "second", tiny_config(limits={"max_steps": 2}))
    kill_process(studio, "first")
    studio.wait("first", "interrupted")
    studio.wait("second", "finished")
    assert studio.get("/api/queue")["pause"] is None


def test_a_failure_pauses_the_queue_until_it_is_continued(studio: Studio, tiny_config: Configs):
    assert change(studio, on_fail="pause")["pause"] is None
    begin(studio, "first", tiny_config(limits={"max_steps": 10_000}))
    begin(studio, "second", tiny_config(limits={"max_steps": 2}))
    kill_process(studio, "first")
    pause = wait_for(lambda: studio.get("/api/queue")["pause"])
    assert pause["run"] == "first"
    # A new studio on this home holds to it.
    studio.end(signal.SIGKILL)
    studio.start()
    time.sleep(1)
    page = studio.get("/api/queue")
    assert (page["on_fail"], page["pause"]) == ("pause", pause)
    (waits,) = page["runs"]
    assert (waits["id"], waits["state"]) == ("second", "queued")
    assert "first failed" in waits["note"]
    assert change(studio, paused=False)["pause"] is None
    assert studio.wait("second", "finished")["note"] is None
    time.sleep(0.5)
    assert studio.get("/api/queue")["pause"] is None, "a failure that was seen to pauses nothing again"


def test_a_failure_that_no_studio_saw_pauses_the_next_one(studio: Studio, tiny_config: Configs):
    change(studio, on_fail="pause")
    begin(studio, "first", tiny_config(limits={"max_steps": 10_000}))
    begin(studio, "second", tiny_config(limits={"max_steps": 2}))
    pid = wait_for(lambda: studio.wait("first", "running")["pid"])
    wait_for(lambda: studio.events("first"))
    studio.end(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: (studio.home / "runs" / "first" / "studio" / "exit.json").exists())
    (studio.home / ".flowloom" / "studio.sqlite").unlink()
    studio.start()
    assert wait_for(lambda: studio.get("/api/queue")["pause"])["run"] == "first"
    assert studio.run("second")["state"] == "queued"


def test_a_requested_stop_is_no_failure(studio: Studio, tiny_config: Configs):
    change(studio, on_fail="pause")
    begin(studio, "killed", tiny_config(limits={"max_steps": 10_000}))
    wait_for(lambda: studio.run("killed")["phase"] == "training")
    studio.post("/api/runs/killed/kill")
    studio.wait("killed", "stopped")
    begin(studio, "whole", tiny_config(limits={"max_steps": 2}))
    studio.wait("whole", "finished")
    assert studio.get("/api/queue")["pause"] is None


def test_a_paused_queue_starts_nothing_and_ends_nothing(studio: Studio, tiny_config: Configs):
    begin(studio, "runs", tiny_config(limits={"max_steps": 10_000}))
    wait_for(lambda: studio.run("runs")["phase"] == "training")
    since = change(studio, paused=True)["pause"]
    assert since["run"] is None
    assert change(studio, paused=True)["pause"] == since
    studio.post("/api/runs/runs/stop")
    studio.wait("runs", "stopped")
    begin(studio, "waits", tiny_config(limits={"max_steps": 2}))
    time.sleep(1)
    waits = studio.run("waits")
    assert waits["state"] == "queued"
    assert "paused" in waits["note"]
    change(studio, paused=False)
    studio.wait("waits", "finished")


def test_a_change_that_means_nothing_is_refused(one_studio: Studio):
    for body in ({"on_fail": "retry"}, {"paused": "perhaps"}, {"pause": True}):
        assert one_studio.http.patch("/api/queue", json=body).status_code == 422
