"""A disk that is full, or read-only: the studio says so, continues to read, and loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.server.conftest import Studio, end_runs, wait_for

Configs = Callable[..., dict[str, Any]]
PROBLEM = "application/problem+json"


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if not (sys.platform == "linux" and mount("-t", "tmpfs", "-o", "size=24m", "none", str(path))):
        pytest.skip("only root mounts a small disk")
    yield path
    end_runs(path / "home")
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def small_config(tiny_config: Configs) -> Configs:
    """One whose checkpoints are small: an adapter."""
    return lambda **sections: tiny_config(lora={"rank": 2}, **sections)


@pytest.fixture
def small_studio(small_disk: Path, tiny_roots: list[str]) -> Iterator[Studio]:
    """A studio whose home is on it."""
    studio = Studio(small_disk / "home", *tiny_roots).start()
    yield studio
    studio.end()


def fill(disk: Path) -> Path:
    """A file that leaves no byte free."""
    path = disk / "filler"
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return path


def start(studio: Studio, name: str, config: dict[str, Any]) -> Any:
    return studio.http.post("/api/flow/train/start", json={"name": name, "config": config})


def test_a_full_disk_leaves_nothing_incomplete_and_everything_readable(
    small_studio: Studio, small_disk: Path, small_config: Configs
) -> None:
    assert start(small_studio, "first", small_config(limits={"max_steps": 2})).status_code == 201
    small_studio.wait("first", "finished")
    filler = fill(small_disk)
    answer = start(small_studio, "second", small_config())
    assert (answer.status_code, answer.headers["content-type"]) == (507, PROBLEM)
    assert "room" in answer.json()["hint"]
    assert not (small_studio.home / "runs" / "second").exists()
    assert [run["id"] for run in small_studio.get("/api/runs")["runs"]] == ["first"]
    assert small_studio.get("/api/runs/first/metrics")["num_steps"] == 2
    filler.unlink()
    assert start(small_studio, "second", small_config(limits={"max_steps": 2})).status_code == 201
    small_studio.wait("second", "finished")


def test_a_run_whose_disk_fills_up_ends_and_continues_when_there_is_room(
    small_studio: Studio, small_disk: Path, small_config: Configs
) -> None:
    config = small_config(limits={"max_steps": 60}, training={"save_every": 5})
    assert start(small_studio, "long", config).status_code == 201
    wait_for(lambda: small_studio.run("long")["checkpoint"])
    filler = fill(small_disk)
    over = small_studio.wait("long", "failed", "interrupted")
    assert over["can_resume"]
    assert "resume" in over["error"]["hint"]
    filler.unlink()
    small_studio.post("/api/runs/long/resume", {})
    small_studio.wait("long", "finished")
    events = small_studio.events("long")
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert events[-1]["step"] == 60


def test_a_studio_starts_on_a_full_disk_and_shows_its_runs(
    small_studio: Studio, small_disk: Path, small_config: Configs
) -> None:
    assert start(small_studio, "one", small_config(limits={"max_steps": 2})).status_code == 201
    small_studio.wait("one", "finished")
    small_studio.end()
    for path in (small_studio.home / ".flowloom").glob("studio.sqlite*"):
        path.unlink()
    filler = fill(small_disk)
    arguments = ["up", "--home", str(small_studio.home), "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "flowloom.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "full" in done.stderr
    filler.unlink()
    small_studio.start()
    assert small_studio.run("one")["state"] == "finished"


def test_on_a_read_only_disk_changes_are_refused_with_the_reason(
    small_studio: Studio, small_disk: Path, small_config: Configs
) -> None:
    assert start(small_studio, "one", small_config(limits={"max_steps": 2})).status_code == 201
    small_studio.wait("one", "finished")
    os.sync()
    # Open files keep a file system from turning read-only; a separate mount can be read-only at once.
    runs = small_studio.home / "runs"
    assert mount("--bind", str(runs), str(runs))
    try:
        assert mount("-o", "remount,bind,ro", str(runs))
        answer = start(small_studio, "two", small_config())
        assert (answer.status_code, answer.headers["content-type"]) == (507, PROBLEM)
        assert "read-only" in answer.json()["hint"]
        for method, path in (("DELETE", "/api/runs/one"), ("POST", "/api/runs/one/resume")):
            body = {"changes": {"limits": {"max_steps": 5}}} if method == "POST" else None
            assert small_studio.http.request(method, path, json=body).status_code == 507
        assert small_studio.run("one")["state"] == "finished"
        assert small_studio.get("/api/runs/one/checkpoints")["checkpoints"]
    finally:
        subprocess.run(["umount", str(runs)], check=True)
    assert start(small_studio, "two", small_config(limits={"max_steps": 2})).status_code == 201
    small_studio.wait("two", "finished")


def test_on_a_full_disk_a_run_is_stopped_and_the_queue_paused(
    small_studio: Studio, small_disk: Path, small_config: Configs
) -> None:
    assert start(small_studio, "long", small_config(limits={"max_steps": 1_000_000})).status_code == 201
    wait_for(lambda: small_studio.run("long")["step"])
    filler = fill(small_disk)
    assert small_studio.http.patch("/api/queue", json={"paused": True}).status_code == 200
    assert small_studio.get("/api/queue")["pause"]
    assert small_studio.http.post("/api/runs/long/stop").status_code == 200
    over = small_studio.wait("long", "stopped", "failed", "interrupted")
    assert over["pid"] is None
    filler.unlink()
