"""After any fault of the server its runs continue; after any fault of a run the server reports it."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flowloom.config.run import RunConfig
from flowloom.run.directory import RunDir
from tests.server.conftest import Studio, wait_for

Configs = Callable[..., dict[str, Any]]


def start(studio: Studio, name: str, config: dict[str, Any], **more: Any) -> Any:
    return studio.post("/api/flow/train/start", {"name": name, "config": config, **more}, 201)


def assert_ran_once(studio: Studio, name: str, steps: int) -> None:
    """One sitting, every step once, events numbered without gaps."""
    events = studio.events(name)
    assert [event["seq"] for event in events] == list(range(len(events)))
    kinds = Counter(event["kind"] for event in events)
    assert (kinds["started"], kinds["finished"], kinds["failed"]) == (1, 1, 0)
    assert [event["step"] for event in events if event["kind"] == "step"] == list(range(1, steps + 1))


def submit_stubbornly(studio: Studio, name: str, config: dict[str, Any]) -> bool:
    """True if the run is known to be accepted; a second request gets 409, and no second run."""
    try:
        body = {"name": name, "config": config}
        return studio.http.post("/api/flow/train/start", json=body).status_code in (201, 409)
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_kill_9_of_the_server_loses_doubles_and_harms_no_run(studio: Studio, tiny_config: Configs):
    draw = random.Random(4)
    config = tiny_config(limits={"max_steps": 8})
    names, accepted = [f"run-{i}" for i in range(6)], set[str]()
    for _ in range(20):
        until = time.monotonic() + draw.uniform(0.0, 1.5)
        while time.monotonic() < until:
            todo = [name for name in names if name not in accepted]
            if todo and submit_stubbornly(studio, todo[0], config):
                accepted.add(todo[0])
            time.sleep(draw.uniform(0.0, 0.2))
        studio.end(signal.SIGKILL)
        studio.start()
    for name in set(names) - accepted:
        assert submit_stubbornly(studio, name, config)
    for name in names:
        studio.wait(name, "finished")
        assert_ran_once(studio, name, steps=8)
    sittings = sorted((studio.events(name)[0]["time"], studio.events(name)[-1]["time"]) for name in names)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(sittings))
    assert {run["id"] for run in studio.get("/api/runs")["runs"]} == set(names)


def test_a_killed_server_finds_its_run_again_and_can_stop_it(studio: Studio, tiny_config: Configs):
    start(studio, "long", tiny_config(limits={"max_steps": 100_000}))
    before = wait_for(lambda: (run := studio.wait("long", "running"))["step"] and run)
    studio.end(signal.SIGKILL)
    studio.start()
    after = studio.run("long")
    assert (after["state"], after["pid"]) == ("running", before["pid"])
    studio.post("/api/runs/long/stop")
    stopped = studio.wait("long", "stopped")
    assert stopped["checkpoint"]
    wait_for(lambda: not psutil.pid_exists(before["pid"]))


def test_a_killed_run_is_interrupted_and_resumes(studio: Studio, tiny_config: Configs):
    config = tiny_config(limits={"max_steps": 400}, training={"save_every": 5})
    start(studio, "killed", config)
    run = wait_for(lambda: (run := studio.wait("killed", "running"))["step"] > 12 and run)
    os.kill(run["pid"], signal.SIGKILL)
    found = studio.wait("killed", "interrupted")
    assert found["can_resume"]
    assert "resume" in found["error"]["hint"]
    studio.post("/api/runs/killed/resume", {})
    wait_for(lambda: [event["kind"] for event in studio.events("killed")].count("started") == 2)
    resumed = [event["resumed_from"] for event in studio.events("killed") if event["kind"] == "started"]
    assert resumed[0] is None
    assert resumed[1] >= 10
    studio.post("/api/runs/killed/kill")
    studio.wait("killed", "stopped")


def test_no_child_of_the_server_becomes_a_zombie(studio: Studio, tiny_config: Configs):
    assert studio.process
    server = psutil.Process(studio.process.pid)
    for name in ("a", "b"):
        start(studio, name, tiny_config(limits={"max_steps": 3}))
    pids = set[int]()
    while {"finished"} != {studio.run(name)["state"] for name in ("a", "b")}:
        pids |= {child.pid for child in server.children(recursive=True)}
        time.sleep(0.1)
    wait_for(lambda: not server.children(recursive=True), 10)
    assert pids
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_a_corrupt_database_is_rebuilt_from_the_run_folders(studio: Studio, tiny_config: Configs):
    config = tiny_config(limits={"max_steps": 100_000})
    for name in ("one", "two", "three"):
        start(studio, name, config)
    studio.wait("one", "running")
    studio.post("/api/runs/three/move", {"before": "two"})
    studio.end(signal.SIGKILL)
    for path in (studio.home / ".flowloom").glob("studio.sqlite*"):
        path.write_bytes(b"this is not a database" * 400)
    studio.start()
    runs = {run["id"]: run for run in studio.get("/api/runs")["runs"]}
    assert runs.keys() == {"one", "two", "three"}
    assert runs["one"]["state"] == "running"
    assert [run["id"] for run in studio.get("/api/queue")["runs"]] == ["three", "two"]
    for name in ("two", "three"):
        studio.post(f"/api/runs/{name}/cancel")
    studio.post("/api/runs/one/kill")


def test_a_database_that_breaks_while_it_is_used_is_rebuilt(studio: Studio, tiny_config: Configs):
    start(studio, "one", tiny_config(limits={"max_steps": 100_000}))
    for path in (studio.home / ".flowloom").glob("studio.sqlite*"):
        with path.open("r+b") as file:
            file.write(os.urandom(path.stat().st_size))
    assert studio.run("one")["id"] == "one"
    assert [run["id"] for run in studio.get("/api/runs")["runs"]] == ["one"]
    studio.wait("one", "running")
    studio.post("/api/runs/one/kill")


def test_a_run_started_by_hand_appears_and_holds_its_device(
    studio: Studio,
    make_config: Callable[..., RunConfig],
    tiny_config: Configs,
):
    by_hand = RunDir.create("by-hand", studio.home / "runs")
    by_hand.write_run(make_config(limits={"max_steps": 100_000}), "by hand")
    command = [sys.executable, "-m", "flowloom.engine", str(by_hand.path)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            found = wait_for(lambda: (studio.http.get("/api/runs/by-hand").json()).get("state") == "running")
            assert found
            start(studio, "waits", tiny_config(limits={"max_steps": 2}))
            wait_for(lambda: (studio.run("by-hand")["step"] or 0) > 3)
            assert studio.run("waits")["state"] == "queued"
            studio.post("/api/runs/by-hand/stop")
            studio.wait("by-hand", "stopped")
            studio.wait("waits", "finished")
        finally:
            process.kill()


def test_one_studio_serves_a_home(studio: Studio, studio_at: Callable[..., Studio]):
    arguments = ["up", "--home", str(studio.home), "--port", "0"]
    second = subprocess.run(
        [sys.executable, "-m", "flowloom.cli.main", *arguments], capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert "another studio" in second.stderr


def test_unfinished_preparations_of_a_killed_server_are_deleted(studio: Studio):
    studio.end(signal.SIGKILL)
    half = studio.home / "runs" / "half" / "studio"
    half.mkdir(parents=True)
    (half / "preparing").touch()
    studio.start()
    assert not half.parent.exists()


def test_a_clock_set_back_changes_no_order(studio: Studio, tiny_config: Configs):
    config = tiny_config(limits={"max_steps": 100_000})
    for name in ("one", "two", "three"):
        start(studio, name, config)
    studio.wait("one", "running")
    for name in ("two", "three"):
        path = studio.home / "runs" / name / "run.json"
        content = json.loads(path.read_text()) | {"created": time.time() - 1e6}
        path.write_text(json.dumps(content))
    assert [run["id"] for run in studio.get("/api/queue")["runs"]] == ["two", "three"]
    for name in ("two", "three"):
        studio.post(f"/api/runs/{name}/cancel")
    studio.post("/api/runs/one/kill")
    studio.wait("one", "stopped")


def test_events_of_a_clock_set_back_stand_in_the_order_of_their_numbers(studio: Studio):
    run = studio.home / "runs" / "back"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {}, "created": time.time() + 1e6}))
    events = [
        {"kind": "started", "resumed_from": None},
        {"kind": "phase", "name": "training"},
        *({"kind": "step", "step": i, "loss": i / 10, "loss_smooth": i / 10} for i in range(1, 9)),
        {"kind": "finished", "step": 8},
    ]
    lines = [{"seq": i, "time": time.time() - 1000 * i, **event} for i, event in enumerate(events)]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = wait_for(lambda: [one for one in studio.get("/api/runs")["runs"] if one["state"] == "finished"])
    assert (found[0]["step"], found[0]["loss"]) == (8, 0.8)
    assert studio.get("/api/runs/back/metrics")["steps"] == list(range(1, 9))
    (run / "run.json").write_text(json.dumps({"config": {"limits": {"max_steps": 9}}, "created": 1.0}))
    assert wait_for(lambda: studio.run("back")["max_steps"]) == 9


def test_a_read_only_runs_folder_is_answered_clearly(studio: Studio, tiny_config: Configs, tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (studio.home / "runs").chmod(0o500)
    answer = studio.http.post("/api/flow/train/start", json={"name": "x", "config": tiny_config()})
    (studio.home / "runs").chmod(0o700)
    assert answer.status_code == 507
    assert answer.headers["content-type"] == "application/problem+json"
